"""A load test that is interrupted, killed, edited in the web page or given bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from testing.load_tests import Finished, RunLocust, locust_command, post
from testing.processes import ROOT, clean_environment, free_port, listening, until

HOG = """
from gevent.monkey import get_original
from locust import events
from scenarios.chat import Chat

def compute():
    while True:
        sum(range(1_000_000))  # one call: no other thread runs meanwhile

@events.test_start.add_listener
def _start(**_):
    get_original("_thread", "start_new_thread")(compute, ())
"""


def test_a_worker_that_cannot_take_part_ends_the_test(simulated: str, tmp_path: Path) -> None:
    """Here: it does not have the file of prompts."""
    (tmp_path / "elsewhere").mkdir()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    port = str(free_port())
    environment = clean_environment(PYTHONPATH=str(ROOT))
    flags = [
        "--master",
        "--expect-workers",
        "1",
        "--master-bind-host",
        "127.0.0.1",
        "--master-bind-port",
        port,
    ]
    command = locust_command(tmp_path / "reports", simulated, *flags, levels="1", prompts="prompts.jsonl")
    command[command.index("scenarios/chat.py")] = str(ROOT / "scenarios" / "chat.py")
    worker = [*command[:3], "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as master,
        subprocess.Popen(
            worker, cwd=tmp_path / "elsewhere", env=environment, stderr=subprocess.DEVNULL
        ) as other,
    ):
        said = master.communicate(timeout=60)[1]
        other.wait(30)
    assert master.returncode == 2, said
    assert "A worker cannot take part: the file prompts.jsonl does not exist." in said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_loses_nothing_and_exits_130(simulated: str, tmp_path: Path, sent: signal.Signals) -> None:
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="4", level_s="60", output_tokens="600")

    def in_flight() -> list[int]:
        lines = [
            line for path in reports.glob("*/client-*.jsonl") for line in path.read_text().splitlines(True)
        ]
        return [json.loads(line)["in_flight"] for line in lines if line.endswith("\n")]

    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(60, lambda: in_flight().count(4) >= 3)  # all have had a token for a second
        process.send_signal(sent)
        began = time.monotonic()
        said = process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 12
    run = Finished(process.returncode, said, reports)
    assert run.code == 130, said
    assert run.info["ended_unix_s"] is not None
    rows = run.rows()
    assert sum(row["outcome"] == "cancelled" for row in rows) == 4
    assert all(row["chunk_s"] for row in rows if row["outcome"] == "cancelled")
    assert "Traceback" not in said


def test_the_web_page_starts_edits_and_stops_and_shows_bad_input(simulated: str, tmp_path: Path) -> None:
    reports, port = tmp_path / "reports", free_port()
    headers = ("--extra-headers", '{"X-Key": "hunter2"}')
    command = locust_command(reports, simulated, "--web-host", "127.0.0.1", "--web-port", str(port), *headers)
    command.remove("--headless")
    page = f"http://127.0.0.1:{port}"

    def schedule() -> list[int]:
        files = list(reports.glob("*/run.json"))
        return [users for _, _, users in json.loads(files[0].read_text())["schedule"]] if files else []

    def exceptions() -> str:
        return str(urllib.request.urlopen(f"{page}/exceptions", timeout=10).read().decode())

    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            until(20, lambda: listening(port))
            form = urllib.request.urlopen(page, timeout=10).read().decode()
            assert all(name in form for name in ("prompt_tokens", "slo_ttft_p95_s", "error_pause_s"))
            assert "hunter2" not in form
            common = {"spawn_rate": "10", "host": simulated}
            post(f"{page}/swarm", user_count="2", prompt_tokens="30", **common)
            until(20, lambda: schedule() == [2])
            post(f"{page}/swarm", user_count="3", **common)
            until(20, lambda: schedule() == [2, 3])
            urllib.request.urlopen(urllib.request.Request(f"{page}/stop", method="POST"), timeout=20).read()
            run = Finished(0, "", reports)
            until(20, lambda: bool(run.info["ended_unix_s"]))
            assert run.info["settings"]["prompt_tokens"] == "30"
            assert {row["outcome"] for row in run.rows()} == {"ok"}
            post(f"{page}/swarm", user_count="1", levels="1,x", **common)
            until(20, lambda: "is not a list of user counts" in exceptions())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, 2)
    assert len(list(reports.iterdir())) == 1


def test_a_killed_run_can_still_be_read(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="2", level_s="60")
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        run = Finished(-9, "", reports)
        until(30, lambda: len(run.rows()) > 10)
        process.kill()
    assert run.info["ended_unix_s"] is None
    assert len(run.rows()) > 10


def test_a_run_folder_that_vanishes_is_there_again_at_the_end(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="2", level_s="6")
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(20, lambda: len(Finished(0, "", reports).rows()) > 5)
        shutil.rmtree(reports)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "cannot be written" in said
    run = Finished(0, said, reports)
    assert len(run.rows()) > 5
    assert run.info["ended_unix_s"]
    assert "Traceback" not in said


def test_a_hogged_load_generator_is_not_trusted_and_the_analysis_refuses(
    simulated: str, tmp_path: Path
) -> None:
    """A scenario that computes beside its requests: their times are then its own."""
    scenario = tmp_path / "hog.py"
    scenario.write_text(HOG)
    reports = tmp_path / "reports"
    command = locust_command(reports, simulated, levels="4", level_s="8")
    command[command.index("scenarios/chat.py")] = str(scenario)
    environment = clean_environment(PYTHONPATH=str(ROOT))
    load = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=90, check=False
    )
    assert load.returncode == 1, load.stderr
    assert re.search(r"The run ends at 4 users, because this machine is (late|busy)", load.stderr)
    analysis = [sys.executable, "-m", "analysis.capacity", str(reports)]
    done = subprocess.run(analysis, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stdout
    assert re.search(r"No level can be trusted: .*load generator (busy|late)", done.stdout)
    (model,) = json.loads((reports / "capacity.json").read_text())["models"]
    assert [level["trusted"] for level in model["levels"]] == [False, False]  # it was held again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": "1,x"}, "--levels: '1,x' is not a list of user counts"),
        ({"levels": "0"}, "--levels: '0' is not a list of user counts"),
        ({"prompt_tokens": "normal:3"}, "--prompt-tokens: 'normal:3' is not a distribution"),
        ({"model": "GPT-7"}, "does not serve 'GPT-7' (HTTP 404: The model `GPT-7` does not exist."),
        ({"model": "GPT-7"}, "; --model can be: Qwen3-1.7B."),
        ({"prompt_tokens": "9000"}, "--prompt-tokens 9000 with --output-tokens 8 does not fit"),
        ({"prompt_tokens": "0"}, "--prompt-tokens: '0' is less than one token"),
        ({"prompt_tokens": "6410", "output_tokens": "100"}, "does not fit: the model's context is"),
        ({"level_s": "inf"}, "--level-s:"),
        ({"settle_s": "9"}, "--settle-s must be shorter than --level-s"),
        ({"prompts": "/no/such/file"}, "/no/such/file does not exist"),
        ({"gpu_metrics": "nvml"}, "--gpu-metrics nvml: NVML does not work on this machine"),
        ({"thinking": "maybe"}, "--thinking:"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_2(
    run_locust: RunLocust, simulated: str, changes: dict[str, str], said: str
) -> None:
    run = run_locust(simulated, **changes)
    assert run.code == 2, run.said
    assert said in run.said
    assert "Traceback" not in run.said
    assert not run.reports.exists()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (None, "No server is given"),
        ("127.0.0.1:80", "is not an address such as"),
        ("http://127.0.0.1:99999", "is not an address such as"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_a_bad_host_gets_one_sentence(run_locust: RunLocust, host: str | None, said: str) -> None:
    run = run_locust(host)
    assert run.code == 2, run.said
    assert said in run.said
    assert "Traceback" not in run.said


def test_levels_with_users_is_an_error(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, "-u", "3", levels="1,2")
    assert run.code == 2
    assert "--levels and -u cannot be combined" in run.said


def test_an_unknown_setting_in_the_environment_is_named(run_locust: RunLocust, simulated: str) -> None:
    run = run_locust(simulated, environment={"LOADTEST_LEVLES": "1"})
    assert run.code == 2
    assert "did you mean LOADTEST_LEVELS?" in run.said
