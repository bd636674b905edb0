"""A load test over several machines: what the master's folder holds when workers come late, are cut off or
killed, and what is left when the master is killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.reading.runs import find_runs, read_run
from testing.hosts.network import HUB, Host, HostsUnavailableError, locust, network, server_command
from testing.processes import until

pytestmark = pytest.mark.real
FLUSH_S = 1.0
"""Rows of the last second before a kill may be lost."""


class Lab:
    """The hub with the server, a master and workers."""

    def __init__(self, hosts: dict[str, Host], tmp_path: Path) -> None:
        self.hosts = hosts
        self.tmp_path = tmp_path
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._server_log = tmp_path / "server.json"

    def start_server(self) -> None:
        self._start("hub", server_command(self._server_log), hidden=[])
        time.sleep(1.5)

    def start_master(self, *flags: str) -> None:
        self._start("master", locust("--master", "--host", f"http://{HUB}:8000", *flags), hidden=[])

    def start_worker(self, name: str) -> None:
        command = locust("--worker", "--master-host", self.hosts["master"].address)
        self._start(name, command, hidden=[self.tmp_path / "master"])

    def _start(self, name: str, command: list[str], *, hidden: list[Path]) -> None:
        log = self.tmp_path / f"{name}.log"
        self.processes[name] = self.hosts[name].start(
            command, folder=self.tmp_path / name, hidden=hidden, log=log
        )

    def said(self, name: str) -> str:
        return (self.tmp_path / f"{name}.log").read_text()

    def kill(self, name: str) -> float:
        """As by kill -9; returns when."""
        self.processes[name].kill()
        self.processes[name].wait(10)
        return time.time()

    def wait(self, name: str, seconds: float) -> int:
        return self.processes[name].wait(seconds)

    @property
    def run_folder(self) -> Path:
        (folder,) = (self.tmp_path / "master" / "reports").iterdir()
        return folder

    def worker_folder(self, name: str) -> Path:
        return self.tmp_path / name / "reports" / self.run_folder.name

    def server_saw(self) -> dict[str, dict[str, Any]]:
        """Requests of the run, by their ids; ends the server."""
        self.processes["hub"].send_signal(signal.SIGTERM)
        self.processes["hub"].wait(10)
        entries = json.loads(self._server_log.read_text())
        return {one["request_id"]: one for one in entries if one["request_id"] != "seatcount-preflight"}

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    try:
        with network("hub", "master", "a", "b", "c") as hosts:
            made = Lab(hosts, tmp_path)
            try:
                made.start_server()
                yield made
            finally:
                made.end()
    except HostsUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"No test ran over several machines. {error}", pytrace=False)
        pytest.skip(str(error))


def rows(folder: Path, pattern: str = "requests-*.jsonl") -> dict[str, dict[str, Any]]:
    """By request id; a torn last line is skipped."""
    found = {}
    for path in folder.glob(pattern):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                found[row["request_id"]] = row
    return found


def schedule(lab: Lab) -> list[list[float]]:
    found: list[list[float]] = json.loads((lab.run_folder / "run.json").read_text())["schedule"]
    return found


WORKLOAD = ["--prompt-tokens", "20", "--output-tokens", "30", "--settle-s", "1", "--level-s", "8"]


def test_the_masters_folder_is_complete_when_workers_come_late_and_are_killed(lab: Lab) -> None:
    lab.start_master("--expect-workers", "2", "--levels", "6", *WORKLOAD)
    lab.start_worker("a")
    lab.start_worker("b")
    until(30, lambda: len(schedule(lab)) == 1)
    time.sleep(3)
    lab.start_worker("c")
    until(20, lambda: len(schedule(lab)) == 2)
    time.sleep(3)
    killed = lab.kill("a")
    until(20, lambda: len(schedule(lab)) == 3)
    assert lab.wait("master", 90) == 1, lab.said("master")
    assert re.search("Rows are missing: worker [01] did not deliver all", lab.said("master"))
    assert [lab.wait(name, 20) for name in ("b", "c")] == [0, 0], lab.said("b") + lab.said("c")
    mine = rows(lab.run_folder)
    assert {row["worker"] for row in mine.values()} == {"0", "1", "2"}
    # The worker that was killed has on its own disk what could not be sent: one command merges it.
    for path in lab.worker_folder("a").iterdir():
        assert path.stat().st_size >= (lab.run_folder / path.name).stat().st_size
        shutil.copy(path, lab.run_folder)
    mine = rows(lab.run_folder)
    saw = lab.server_saw()
    lost = saw.keys() - mine.keys()
    assert len(lost) <= 6, lost
    assert all(killed - FLUSH_S - 0.7 < saw[one]["received"] < killed for one in lost)
    assert mine.keys() <= saw.keys()
    for name in ("b", "c"):
        for path in lab.worker_folder(name).iterdir():
            assert path.read_bytes() == (lab.run_folder / path.name).read_bytes()
    end = schedule(lab)[1][1]
    assert end < killed + 3, "the level of the lost worker lasted beyond its users"
    assert {users for _, _, users in schedule(lab)} == {6}
    (found,) = find_runs(lab.run_folder)
    offsets = [worker.clock_offset_s for worker in found.info.workers]
    assert all(offset is not None and abs(offset) < 0.05 for offset in offsets)
    run = read_run(found)
    last_begin, last_end, _ = schedule(lab)[2]
    middle = (last_begin + last_end) / 2
    held = (run.requests.start_unix_s < middle) & (run.requests.end_unix_s > middle)
    assert held.sum() == 6


def test_a_worker_that_was_cut_off_delivers_afterwards(lab: Lab) -> None:
    lab.start_master("--expect-workers", "2", "--arrivals", "poisson:20", "--level-s", "14", *WORKLOAD[:-2])
    lab.start_worker("a")
    lab.start_worker("b")
    until(30, lambda: len(rows(lab.run_folder)) > 40)
    lab.hosts["b"].cut_off_from(lab.hosts["master"])
    time.sleep(2.5)
    lab.hosts["b"].reach_again(lab.hosts["master"])
    assert lab.wait("master", 90) == 0, lab.said("master")
    saw, mine = lab.server_saw(), rows(lab.run_folder)
    assert saw.keys() == mine.keys()
    due = sorted(row["user"] for row in mine.values())
    assert due == list(range(len(due))), "every arrival once"
    assert {row["outcome"] for row in mine.values()} == {"ok"}


def test_what_workers_measured_outlives_the_master(lab: Lab) -> None:
    lab.start_master("--expect-workers", "2", "--levels", "6", "--level-s", "60", *WORKLOAD[:-2])
    lab.start_worker("a")
    lab.start_worker("b")
    until(30, lambda: len(rows(lab.run_folder)) > 20)
    killed = lab.kill("master")
    time.sleep(3)
    for name in ("a", "b"):
        lab.processes[name].send_signal(signal.SIGINT)
    for name in ("a", "b"):
        lab.wait(name, 30)
        assert "The master did not take all rows of this worker. Copy them" in lab.said(name)
        for path in lab.worker_folder(name).iterdir():
            shutil.copy(path, lab.run_folder)
    saw, mine = lab.server_saw(), rows(lab.run_folder)
    assert saw.keys() == mine.keys()
    assert any(row["start_unix_s"] > killed for row in mine.values())
    (found,) = find_runs(lab.run_folder)
    run = read_run(found)
    assert len(run.requests) == len(saw)
    assert any("has no end" in warning for warning in run.warnings)
