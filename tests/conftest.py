"""Real servers and the user's own commands, for tests. Locust is never imported here: it patches sockets."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.load_tests import Finished, RunLocust, locust_command
from testing.processes import ROOT, clean_environment, simulator


@pytest.fixture(scope="session")
def simulated() -> Iterator[str]:
    with simulator("--num-gpu-blocks-override", "401") as url:
        yield url


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
