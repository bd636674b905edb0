"""The load generator's own machine: busy, late, short of files or disk. Then those who run it: pages, CI."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import analyse_run, command, user_load
from testing.field.deployment import (
    SWEEP,
    TRAFFIC,
    errors_of,
    is_memory_wall,
    memory_wall_right,
    small_server,
)
from testing.load_tests import locust_command, post
from testing.processes import (
    ROOT,
    busy_processes,
    clean_environment,
    free_port,
    listening,
    simulator,
    until,
)
from testing.runs.own import OwnRun, write_guidellm_folder
from testing.runs.virtual import Plan, small_engine, write_run

_STEADY = {**TRAFFIC, "levels": "4", "level_s": "4"}
_OURS = ("load generator late", "load generator busy", "simulated server was late")
_HOG = """
from gevent.monkey import get_original
from locust import events
from scenarios.chat import Chat

def compute():
    while True:
        sum(range(500_000))  # in one call, so that the GIL is held for some 10 ms on a fast machine as well

@events.test_start.add_listener
def _start(**_):
    get_original("_thread", "start_new_thread")(compute, ())
"""
_STEPPED_CLOCK = """
import time
from locust import events
from scenarios.chat import Chat

wall, began = time.time, time.monotonic()

def set_wall():
    forward = 10 < time.monotonic() - began < 15
    return wall() + 60 * forward

@events.test_start.add_listener
def _start(**_):
    time.time = set_wall
    print("clock set")
"""


@case("another process takes a core of the load generator's machine")
def busy_machine(folder: Path) -> Judged:
    with small_server() as url, busy_processes(1):
        user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    refused = bool(answer.model) and answer.model["refused"]
    return judged(
        f"{memory_wall_right()}, or refused for the load generator's own reasons",
        answer.brief,
        unless(is_memory_wall(answer) or (refused and any(map(answer.says, _OURS))), "neither"),
    )


@case("the load generator is late from the first level on")
def late_from_the_start(folder: Path) -> Judged:
    hog = folder / "hog.py"
    hog.write_text(_HOG)
    began = time.monotonic()
    with small_server() as url:
        run = user_load(folder, url, locustfile=hog)(**{**SWEEP, "levels": "4,8,12,16,20", "level_s": "8"})
    took_s = time.monotonic() - began
    return judged(
        "said while it runs, with what to do; it ends early, or lowers itself",
        f"exit {run.code} after {took_s:.0f} s of 45",
        unless(
            re.search(r"(load generator|machine).*(late|busy)", run.said) is not None,
            "not said while it runs",
        ),
        unless(took_s < 40, "it does not end early"),
    )


@case("the machine's clock is set forward by a minute in the second level, and back again")
def clock_steps(folder: Path) -> Judged:
    stepped = folder / "stepped.py"
    stepped.write_text(_STEPPED_CLOCK)
    with small_server() as url:
        run = user_load(folder, url, locustfile=stepped)(**SWEEP)
    answer, rows = analyse_run(folder), run.rows()
    starts = sorted(row["start_unix_s"] for row in rows)
    return judged(
        f"{memory_wall_right()}; no stamp is off",
        f"{answer.brief}; {len(rows)} rows in {starts[-1] - starts[0]:.0f} s",
        unless("clock set" in run.said, "the clock was not set"),
        unless(is_memory_wall(answer), "not the memory wall"),
        unless(starts[-1] - starts[0] < 45, "stamps are off"),
        answer.says("clocks differ") and "the clock is blamed",
    )


@case("the load generator may open few files")
def few_files(folder: Path) -> Judged:
    with simulator() as url:
        changes = {**TRAFFIC, "levels": "60", "level_s": "4"}
        run = user_load(folder, url, before=("prlimit", "--nofile=64:64"))(**changes)
    rows = run.rows() if run.reports.exists() else []
    counts = errors_of(rows)
    answer = analyse_run(folder)
    return judged(
        "not_sent: the load generator's own, no wall",
        f"exit {run.code}; {counts}; {answer.brief}",
        unless(counts.get("not_sent", 0) > 0, "not counted as not_sent"),
        unless(set(counts) <= {"not_sent"}, "other failures"),
        answer.model.get("binding") == "errors" and "errors are the wall",
        unless(answer.says("open files") or "open files" in run.said, "what to do is not said"),
    )


@case("the disk is full: rows are lost")
def full_disk(folder: Path) -> Judged:
    with simulator() as url:
        run = user_load(folder, url, before=("prlimit", "--fsize=40000:40000"))(**{**_STEADY, "levels": "8"})
    analysed = command("analysis.capacity", str(folder / "reports"))
    return judged(
        "said, and not with 0",
        f"exit {run.code}; analysis {analysed.returncode}",
        unless(analysed.returncode in (2, 3), "the analysis ends with 0"),
        unless("lost" in run.said, "not said"),
        unless(run.code not in (0, 130), "exit code 0"),
        "Traceback" in run.said and "a traceback",
    )


@case("a second run from the web page while the first one's streams still end")
def second_run_from_the_page(folder: Path) -> Judged:
    reports, port = folder / "reports", free_port()
    page = f"http://127.0.0.1:{port}"
    with simulator() as url:
        words = locust_command(reports, url, "--web-host", "127.0.0.1", "--web-port", str(port))
        words.remove("--headless")
        with subprocess.Popen(words, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
            try:
                until(20, lambda: listening(port))
                form = urllib.request.urlopen(page, timeout=10).read().decode()
                for count in ("3", "2"):
                    post(f"{page}/swarm", user_count=count, spawn_rate="10", host=url, output_tokens="100")
                    time.sleep(4)
                    stop = urllib.request.Request(f"{page}/stop", method="POST")
                    urllib.request.urlopen(stop, timeout=20).read()
                time.sleep(2)
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(20)
    runs = [json.loads(path.read_text()) for path in sorted(reports.glob("*/run.json"))]
    users = [[level[2] for level in run["schedule"]] for run in runs]
    ended = [run["ended_unix_s"] is not None for run in runs]
    health = [path.read_bytes().count(b"\n") for path in sorted(reports.glob("*/client-*.jsonl"))]
    return judged(
        "two whole runs, of 3 and of 2 users; the form has the settings",
        f"levels {users}, ended {ended}, rows of health {health}",
        unless(users == [[3], [2]], "other levels"),
        unless(all(ended) and len(ended) == 2, "not ended"),
        unless(len(health) == 2 and min(health) >= 3, "health is missing"),
        unless("prompt_tokens" in form and "slo_ttft_p95_s" in form, "the form lacks settings"),
    )


@case("the OpenAI key is in OPENAI_API_KEY")
def openai_key(folder: Path) -> Judged:
    with simulator("--api-key", "sk-field-secret") as url:
        run = user_load(folder, url, environment={"OPENAI_API_KEY": "sk-field-secret"})(levels="1")
    return judged(
        "offered in a sentence, or used",
        f"exit {run.code}",
        unless(run.code == 0 or "OPENAI_API_KEY" in run.said, "ignored"),
        "sk-field-secret" in run.said and "the key is printed",
    )


@case("Ctrl-C during an analysis; digits; the README's jq line")
def small_things(folder: Path) -> Judged:
    write_run(folder / "reports" / "run", small_engine(), Plan(levels=(2, 4, 8, 16, 20), level_s=120.0))
    answer = analyse_run(folder)
    words = [sys.executable, "-m", "analysis.capacity", str(folder / "reports")]
    with subprocess.Popen(
        words, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        time.sleep(1.5)  # the modules are loaded, the walls are being placed
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[0]
    noise = re.search(r"\d\.\d+e-\d+", answer.said + (folder / "reports" / "report.md").read_text())
    return judged(
        "130 without a traceback; capacity.json where the results were asked for; no noise digits",
        f"exit {process.returncode}; {answer.brief}",
        unless(process.returncode == 130, "another exit code"),
        ("Traceback" in said or "KeyboardInterrupt" in said) and "a traceback",
        noise is not None and f"noise digits: {noise and noise.group()}",
        unless((folder / "reports" / "capacity.json").exists(), "no capacity.json there"),
    )


@case("results of another tool that are too few")
def few_results_of_another_tool(folder: Path) -> Judged:
    own = OwnRun(folder / "own")
    few = [row for users in (4, 8) for row in own.level(users)[:12]]
    write_guidellm_folder(few, folder / "results")
    done = command("analysis.capacity", str(folder / "results"))
    return judged(
        "refused with advice in that tool's flags",
        f"exit {done.returncode}",
        unless(done.returncode in (0, 3), done.stdout),
        "--level-s" in done.stdout and "advice in our flags",
        "Traceback" in done.stdout and "a traceback",
    )


@case("a baseline that met no wall, and a pool 20 % smaller, at the gate")
def weak_baseline(folder: Path) -> Judged:
    large, small = small_engine(), small_engine(num_gpu_blocks=103)
    write_run(folder / "baseline", large, Plan(levels=(2, 4, 8, 14)))
    write_run(folder / "candidate", small, Plan(levels=(2, 4, 8, 14, 16), seed=1))
    done = command("analysis.compare", "--gate", str(folder / "baseline"), str(folder / "candidate"))
    return judged(
        "3: the baseline met no wall",
        f"exit {done.returncode}",
        unless(done.returncode in (3, 4), "the gate passes"),
        unless("no wall" in done.stdout or done.returncode == 4, "it does not say why"),
    )
