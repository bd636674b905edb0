"""What the server says of itself: metrics that are odd, missing, doubled or secret."""

import contextlib
import json
import os
import time
from pathlib import Path

import psutil

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import analyse_run, user_load, wait_for_level
from testing.field.deployment import (
    SWEEP,
    TRAFFIC,
    is_memory_wall,
    memory_wall_right,
    small_server,
)
from testing.load_tests import Finished
from testing.processes import busy_processes, change_gateway, gateway
from testing.vllm.server import start_vllm

_STEADY = {**TRAFFIC, "levels": "2", "level_s": "4"}
OLD_GAUGE = "# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc 0.8\n"
LLAMA_CPP_METRICS = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 1\n"


@case("vLLM exports the KV usage under its old and its new name")
def doubled_gauge(folder: Path) -> Judged:
    with small_server() as server, gateway(server, metrics_head=OLD_GAUGE) as url:
        run = user_load(folder, url)(**_STEADY)
    usages = [row["kv_cache_usage"] for row in run.rows("server.jsonl") if row["kv_cache_usage"] is not None]
    highest = max(usages, default=-1.0)
    return judged(
        "the new name alone: below 0.5 with two users",
        f"at most {highest:.2f}",
        unless(0 < highest < 0.5, "another value"),
    )


@case("--metrics-url with a password that holds an @")
def password_with_an_at_sign(folder: Path) -> Judged:
    with small_server() as server:
        address = f"{server.replace('http://', 'http://ann:hunter@2x9@')}/metrics"
        run = user_load(folder, server)(**_STEADY, metrics_url=address)
        refused = user_load(folder / "host", server.replace("http://", "http://ann:hunter@2x9@"))(levels="1")
    analyse_run(folder)
    files = [path for path in (folder / "reports").rglob("*") if path.is_file()]
    leaks = [path.name for path in files if b"2x9" in path.read_bytes() or b"hunter" in path.read_bytes()]
    said = "2x9" in run.said + refused.said
    return judged(
        "it is in no file and no message",
        f"exit {run.code}; in {', '.join(leaks) or 'no file'}{', said' if said else ''}",
        unless(run.code == 0, "the run fails"),
        unless(len(files) > 5, "no files"),
        bool(leaks) and "it leaks",
        said and "it is printed",
    )


@case("/metrics in an unknown charset")
def odd_charset(folder: Path) -> Judged:
    with small_server() as server, gateway(server, metrics_type="text/plain; charset=klingon") as url:
        run = user_load(folder, url)(**_STEADY)
    samples = run.rows("server.jsonl")
    read = sum(row["running"] is not None for row in samples)
    return judged(
        "read all the same, or said",
        f"{read} of {len(samples)} samples read",
        unless(read >= 3 or "charset" in run.said or "klingon" in run.said, "neither"),
    )


@case("/metrics is 404 for some seconds in the second level")
def metrics_vanish(folder: Path) -> Judged:
    with small_server() as server, gateway(server) as url:

        def go(run: Finished) -> None:
            wait_for_level(run, 2)
            time.sleep(1)
            change_gateway(url, no_metrics=True)
            time.sleep(2.5)
            change_gateway(url, no_metrics=False)

        run = user_load(folder, url, meanwhile=go)(**SWEEP)
    answer, samples = analyse_run(folder), run.rows("server.jsonl")
    failed = sum(row["error"] is not None for row in samples)
    return judged(
        f"{memory_wall_right()}; failed scrapes are rows, never 0",
        f"{answer.brief}; {failed} failed scrapes of {len(samples)}",
        unless(is_memory_wall(answer), "not the memory wall"),
        unless(failed >= 1, "no failed scrape"),
    )


@case("no metrics at all")
def no_metrics(folder: Path) -> Judged:
    with small_server() as server, gateway(server, no_metrics=True) as url:
        user_load(folder, url)(**{**SWEEP, "levels": "2,4", "level_s": "10"})
    answer = analyse_run(folder)
    return judged(
        "memory and max_num_seqs are not observable here",
        answer.brief,
        unless(answer.says("not observable"), "not said"),
        "max_num_seqs" in answer.no_wall and "max_num_seqs is said to be no wall",
        "KV cache" in answer.no_wall and "the KV cache is said to be no wall",
    )


@case("--metrics-url off")
def metrics_off(folder: Path) -> Judged:
    with small_server() as server:
        run = user_load(folder, server)(**_STEADY, metrics_url="off")
    answer = analyse_run(folder)
    return judged(
        "said that it was not asked",
        f"exit {run.code}; {answer.brief}",
        "there is none" in run.said and "it says that there is none",
        unless("off" in run.said, "not said"),
    )


@case("/metrics of llama.cpp")
def metrics_of_another_engine(folder: Path) -> Judged:
    pages = json.dumps({"/metrics": LLAMA_CPP_METRICS})
    with small_server() as server, gateway(server, pages=pages) as url:
        run = user_load(folder, url)(**_STEADY)
    return judged(
        "said what was found, and asked for",
        f"exit {run.code}",
        unless(run.code == 0, "the run fails"),
        unless("llamacpp" in run.said or "llama.cpp" in run.said, "what was found is not said"),
        "there is none" in run.said and "it says that there is none",
    )


@case("already one user misses the objective of TTFT")
def past_the_wall_at_the_lowest(folder: Path) -> Judged:
    with small_server() as server, gateway(server, delay_s=0.3) as url:
        user_load(folder, url)(**{**SWEEP, "levels": "1,2,4"}, slo_ttft_p95_s="0.2")
    answer = analyse_run(folder)
    return judged(
        "past TTFT at the lowest level, and nothing else is said of TTFT",
        answer.brief,
        unless(answer.says("time to first token"), "TTFT is not named"),
        "time to first token" in answer.no_wall and "it says 'No wall' from TTFT too",
    )


@case(
    "something else takes the core of a real vLLM for half of the first level",
    tested=False,
)
def starved_server(folder: Path) -> Judged:
    core, *others = sorted(os.sched_getaffinity(0))
    elsewhere = ("taskset", "-c", ",".join(map(str, others or [core])))
    lengths = {"prompt_tokens": "lognormal:150,0.3", "output_tokens": "lognormal:30,0.4"}
    with start_vllm(num_gpu_blocks_override=72, log=folder / "vllm.txt") as server:
        _pin(server.pid, core)

        def go(run: Finished) -> None:
            wait_for_level(run, 1)
            time.sleep(12)
            with busy_processes(3, core=core):
                time.sleep(20)

        run = user_load(folder, server.url, before=elsewhere, meanwhile=go)(
            **lengths, levels="6,12", level_s="40"
        )
    answer = analyse_run(folder)
    users = [level[2] for level in run.info["schedule"]]
    model = answer.model
    right = model.get("binding") == "kv_cache" and 9.5 <= model["estimate_x"] <= 13
    return judged(
        "that level is named and held again; 10 to 12 users, KV cache",
        f"{answer.brief}; levels {users}",
        unless(right, "not 10 to 12 by the KV cache"),
        unless(users.count(6) == 2, "not held again"),
        unless("not steady" in run.said, "not named in the load test"),
        unless(answer.says("not steady"), "not named in the report"),
        answer.says("clocks differ") and "the clock is blamed",
    )


def _pin(pid: int, core: int) -> None:
    """Lets all threads of a process and of its children run on one core only."""
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, {core})
