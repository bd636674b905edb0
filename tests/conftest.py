"""Real servers and the user's own commands, for tests. Locust is never imported here: it patches sockets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCUST = Path(sys.executable).with_name("locust")


def clean_environment(**extra: str) -> dict[str, str]:
    """This environment without settings that somebody left in it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOADTEST_", "LOCUST_", "VLLM_"))}
    return {**kept, **extra}


@contextlib.contextmanager
def simulator(*flags: str) -> Iterator[str]:
    """The embedded server; yields its address without /v1."""
    command = [sys.executable, "-m", "loadtest.simulator", "--port", "0", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment()
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            assert " on " in line, line
            yield line.rpartition(" on ")[2].removesuffix("/v1")
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def simulated() -> Iterator[str]:
    with simulator("--num-gpu-blocks-override", "401") as url:
        yield url


class Finished:
    """A finished load test: exit code, what it said, and its run folder."""

    def __init__(self, code: int, said: str, reports: Path) -> None:
        self.code = code
        self.said = said
        self.reports = reports

    @property
    def folder(self) -> Path:
        (folder,) = (path for path in self.reports.iterdir() if path.is_dir())
        return folder

    @property
    def info(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run.json").read_text()))

    def rows(self, pattern: str = "requests-*.jsonl") -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob(pattern) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]


QUICK = {"--prompt-tokens": "40", "--output-tokens": "8", "--settle-s": "0.5"}


def locust_command(
    reports: Path, host: str | None, *flags: str, scenario: str = "chat", **changes: str
) -> list[str]:
    level = {"--level-s": "2"} if scenario == "chat" else {}
    settings = {**QUICK, **level, **{f"--{k.replace('_', '-')}": v for k, v in changes.items()}}
    words = [word for pair in settings.items() for word in pair]
    target = ["--host", host] if host else []
    return [
        str(LOCUST),
        "-f",
        f"scenarios/{scenario}.py",
        "--headless",
        *target,
        "--reports-dir",
        str(reports),
        *words,
        *flags,
    ]


def until(seconds: float, ready: Callable[[], bool]) -> None:
    """Waits for it; what is not there yet may raise OSError or ValueError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if ready():
                return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def two_processes() -> list[str]:
    """Flags for two workers and a master on a port of their own: tests run side by side."""
    port = str(free_port())
    ports = ["--master-bind-port", port, "--master-port", port]
    return ["--processes", "2", "--master-bind-host", "127.0.0.1", *ports]


RunLocust = Callable[..., Finished]


@pytest.fixture
def run_locust(tmp_path: Path) -> RunLocust:
    """Runs the load test as a user would, and waits for its end."""

    def run(
        host: str | None, *flags: str, environment: dict[str, str] | None = None, **changes: str
    ) -> Finished:
        with subprocess.Popen(
            locust_command(tmp_path / "reports", host, *flags, **changes),
            cwd=ROOT,
            env=clean_environment(PYTHONFAULTHANDLER="1", **(environment or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                said = process.communicate(timeout=100)[0]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # prints where every thread stands
                pytest.fail(f"did not end: {process.communicate(timeout=10)[0]}", pytrace=False)
        return Finished(process.returncode, said, tmp_path / "reports")

    return run
