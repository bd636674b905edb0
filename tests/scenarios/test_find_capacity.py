"""`locust -f scenarios/find_capacity.py` as a user runs it, and the advisor that it asks."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from analysis.search.__main__ import judgement_of
from loadtest.record import RUN_FILE, RequestRecord, SearchState, encode_line
from testing.load_tests import Finished, RunLocust, locust_command, post, two_processes
from testing.processes import ROOT, clean_environment, free_port, listening, simulator, until
from testing.runs.virtual import Plan, small_engine, write_run

SEARCH = {"scenario": "find_capacity", "output_tokens": "lognormal:16,0.4"}


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A pool of 640 tokens: some ten users."""
    with simulator("--num-gpu-blocks-override", "41") as url:
        yield url


def advisors(reports: Path) -> list[int]:
    """Process ids of advisors of runs in this folder."""
    listing = subprocess.run(["ps", "-wweo", "pid=,args="], capture_output=True, text=True, check=True)
    return [
        int(line.split()[0])
        for line in listing.stdout.splitlines()
        if "analysis.search" in line and str(reports) in line
    ]


def test_two_processes_search_together(run_locust: RunLocust, small: str) -> None:
    run = run_locust(small, *two_processes(), budget_s="8", **SEARCH)
    assert run.code == 0, run.said
    assert run.info["settings"]["budget_s"] == 8
    assert run.info["schedule"][-1][1] - run.info["schedule"][0][0] < 10
    assert [worker["name"] for worker in run.info["workers"]] == ["0", "1"]
    assert run.rows()
    assert "The answer: " in run.said
    assert "next: python -m analysis.capacity" in run.said
    assert advisors(run.reports) == []


@contextlib.contextmanager
def searching(reports: Path, host: str) -> "Iterator[subprocess.Popen[str]]":
    """A search of which some rows are on the disk."""
    command = locust_command(reports, host, **SEARCH)
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(20, lambda: len(Finished(0, "", reports).rows()) > 5)
            yield process
        finally:
            process.kill()


def test_a_search_moves_on_without_a_restart_until_ctrl_c(small: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with searching(reports, small) as process:
        run = Finished(0, "", reports)
        until(90, lambda: len(run.info["schedule"]) >= 2 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    if "load generator late" in said:
        pytest.skip("this machine is too busy: no level was trusted, and the search said so")
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert advisors(reports) == []
    schedule = run.info["schedule"]
    assert all(users != after for (_, _, users), (_, _, after) in itertools.pairwise(schedule))
    assert all(0 <= after - end < 5 for (_, end, _), (after, _, _) in itertools.pairwise(schedule))
    assert run.info["ended_unix_s"] is not None
    assert {row["outcome"] for row in run.rows()} <= {"ok", "cancelled"}
    analysis = [sys.executable, "-m", "analysis.capacity", str(run.folder)]
    subprocess.run(analysis, cwd=ROOT, capture_output=True, timeout=60, check=False)
    (model,) = json.loads((run.folder / "capacity.json").read_text())["models"]
    analysed = {level["users"] for level in model["levels"]}
    assert schedule[0][2] in analysed <= {users for _, _, users in schedule}


def test_ctrl_c_while_the_last_streams_finish_completes_the_run(simulated: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    slow = {"budget_s": "4", "output_tokens": "600"}
    command = locust_command(reports, simulated, **{**SEARCH, **slow})
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("time limit" in line for line in process.stderr)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        said = process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 5  # the stream has up to ten more seconds
    run = Finished(process.returncode, said, reports)
    assert run.code == 130, said
    assert run.info["ended_unix_s"] is not None
    assert {row["outcome"] for row in run.rows()} == {"cancelled"}
    assert advisors(reports) == []


def test_an_advisor_outlives_no_killed_search(small: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with searching(reports, small) as process:
        assert len(advisors(reports)) == 1
        process.kill()
    until(10, lambda: advisors(reports) == [])


def test_a_lost_advisor_ends_the_search_with_its_rows(small: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    with searching(reports, small) as process:
        (advisor,) = advisors(reports)
        os.kill(advisor, signal.SIGKILL)
        said = process.communicate(timeout=40)[1]
    assert process.returncode == 1, said
    assert "The search cannot go on, because its advisor is lost (it ended with code -9)." in said
    assert "Traceback" not in said
    run = Finished(process.returncode, said, reports)
    assert run.info["ended_unix_s"] is not None
    assert {row["outcome"] for row in run.rows()} == {"ok"}


def test_the_web_page_starts_a_search(small: str, tmp_path: Path) -> None:
    reports, port = tmp_path / "reports", free_port()
    command = locust_command(reports, small, "--web-host", "127.0.0.1", "--web-port", str(port), **SEARCH)
    command.remove("--headless")
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            until(20, lambda: listening(port))
            post(f"http://127.0.0.1:{port}/swarm", user_count="7", budget_s="3", host=small)
            until(30, lambda: bool(Finished(0, "", reports).info["ended_unix_s"]))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
    run = Finished(0, "", reports)
    assert run.info["schedule"][0][2] < 7
    assert run.rows()
    assert advisors(reports) == []


@pytest.mark.parametrize(
    ("flags", "changes", "said"),
    [
        (["-u", "4"], {}, "The search chooses the users itself"),
        ([], {"levels": "1,2"}, "The search chooses the users itself"),
        ([], {"level_s": "30"}, "The search decides how long a level lasts"),
        ([], {"arrivals": "poisson:3"}, "cannot be combined with --arrivals or --trace"),
        ([], {"budget_s": "0"}, "--budget-s:"),
        (
            [],
            {"scenario": "chat", "budget_s": "60"},
            "--budget-s limits a search (scenarios/find_capacity.py)",
        ),
    ],
)
def test_what_does_not_go_with_a_search_gets_one_sentence_and_exit_2(
    run_locust: RunLocust, small: str, flags: list[str], changes: dict[str, str], said: str
) -> None:
    run = run_locust(small, *flags, **{**SEARCH, **changes})
    assert run.code == 2, run.said
    assert said in run.said
    assert "Traceback" not in run.said
    assert not run.reports.exists()


def test_the_advisor_answers_each_line_until_its_input_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "r", small_engine(), Plan(levels=(1, 2, 4), level_s=12.0))
    states = [SearchState(left_s=100), SearchState(holding=4, held_s=10, left_s=50), SearchState(left_s=0)]
    looks = b"".join(msgspec.json.encode(state) + b"\n" for state in states)
    command = [sys.executable, "-m", "analysis.search", str(tmp_path / "r")]
    done = subprocess.run(command, cwd=ROOT, input=looks, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 3
    assert all(set(answer) == {"users", "look_s", "why", "line"} for answer in answers)
    assert answers[1]["look_s"] > 0
    assert "up to 4 users" in answers[1]["line"]


def test_requests_under_way_count_as_load_of_a_run_that_goes_on(tmp_path: Path) -> None:
    """Their rows are missing: without them a short level looks as if its users were not there."""
    folder = tmp_path / "r"
    info = write_run(folder, small_engine(), Plan(levels=(6,), level_s=12.0))
    begin, _, users = info.schedule[0]
    now = begin + 8.0
    rows = [
        msgspec.json.decode(line, type=RequestRecord)
        for line in (folder / "requests-0.jsonl").read_bytes().splitlines()
    ]
    ended = [row for row in rows if row.start_unix_s + row.end_s <= now]
    assert len(ended) < len(rows)
    (folder / "requests-0.jsonl").write_bytes(b"".join(map(encode_line, ended)))
    info.schedule[:] = [(begin, now, users)]

    def in_flight(*, ended_unix_s: float | None) -> float:
        info.ended_unix_s = ended_unix_s
        (folder / RUN_FILE).write_bytes(msgspec.json.encode(info))
        (level,) = judgement_of(folder, quick=True).evidence.levels
        return level.in_flight

    assert in_flight(ended_unix_s=now) < 5.8
    assert in_flight(ended_unix_s=None) == pytest.approx(6.0, abs=0.1)
