"""Starts the servers that tests and benchmarks use, finds free ports, and waits for conditions."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCUST = Path(sys.executable).with_name("locust")


def clean_environment(**extra: str) -> dict[str, str]:
    """Returns the environment without variables of the load test, Locust and vLLM, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOADTEST_", "LOCUST_", "VLLM_"))}
    return {**kept, **extra}


@contextlib.contextmanager
def simulator(*flags: str) -> Iterator[str]:
    """Starts the embedded server on a free port and yields its address without /v1."""
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


@contextlib.contextmanager
def scripted_server(*flags: str) -> Iterator[str]:
    """Starts the scripted server on a free port and yields its address."""
    command = [sys.executable, "-m", "testing.servers.scripted", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def gateway(*upstreams: str, **rules: object) -> Iterator[str]:
    """Starts the misbehaving gateway before these servers and yields its address. The rules are those of
    `testing.servers.gateway_rules`."""
    command = [sys.executable, "-m", "testing.servers.gateway", *upstreams]
    for name, value in rules.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def change_gateway(url: str, **rules: object) -> None:
    """Changes rules of a running gateway."""
    request = urllib.request.Request(f"{url}/gateway", json.dumps(rules).encode(), method="POST")
    urllib.request.urlopen(request, timeout=10).read()


def until(seconds: float, ready: Callable[[], bool]) -> None:
    """Waits until `ready` returns true. `ready` may raise OSError or ValueError before that.

    Raises AssertionError after `seconds`.
    """
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


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def session_members(session: int) -> list[int]:
    """Returns the ids of the running processes of a session, without zombies."""
    # Path.glob calls stat on each file and fails if the process has ended meanwhile; os.listdir does not.
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
    return [pid for pid in pids if _session(Path(f"/proc/{pid}/stat")) == session]


def _session(stat: Path) -> int | None:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # ended while we looked
        return None
    return None if fields[0] == "Z" else int(fields[3])


@contextlib.contextmanager
def busy_processes(count: int, *, core: int | None = None) -> Iterator[None]:
    """Keeps this many other processes computing, on one core if it is given."""
    pinned = ["taskset", "-c", str(core)] if core is not None else []
    words = [*pinned, sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(words) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
