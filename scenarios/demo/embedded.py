"""Runs the embedded (simulated) server and the commands of a normal user as processes. Leaving the `with`
block of a process ends the process, even after an interrupt."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_READY = " on "
"""Text that stands before the address in the server's first line."""


class ProcessFailedError(Exception):
    """Raised when a process fails. `code` is the exit code that the calling program should return."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def demo_exit_code(work: Callable[[], None]) -> int:
    """Calls `work` and returns an exit code: 0 after success, 130 after Ctrl-C or SIGTERM, or the `code` of a
    ProcessFailedError."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        work()
    except ProcessFailedError as failure:
        tell(str(failure))
        return failure.code
    except KeyboardInterrupt:
        tell("Interrupted; nothing is left running.")
        return 130
    return 0


@contextlib.contextmanager
def served(preset: str, *flags: str) -> Iterator[str]:
    """Starts the embedded server on a free port and yields its address. Raises ProcessFailedError if the
    server does not start."""
    command = [sys.executable, "-m", "loadtest.simulator", "--preset", preset, "--port", "0", *flags]
    with _process(command, pipe=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline().strip()
        if _READY not in line:
            raise ProcessFailedError(
                f"The embedded server did not start. Run it alone to see why: python {' '.join(command[1:])}"
            )
        tell(line)
        yield line.rpartition(_READY)[2]


def run_chat(host: str, flags: Mapping[str, str]) -> None:
    """Runs all levels of scenarios/chat.py against the server at `host`, with `flags` as Locust's options.
    Raises ProcessFailedError if Locust fails."""
    words = [word for pair in {"--host": host, **flags}.items() for word in pair]
    locust = Path(sys.executable).with_name("locust")
    finish_command([str(locust), "-f", str(Path("scenarios") / "chat.py"), "--headless", *words])


def finish_command(command: Sequence[str]) -> None:
    """Runs a command and waits for its end. Raises ProcessFailedError if its exit code is not 0."""
    with _process(command) as process:
        code = process.wait()
    if code != 0:
        raise ProcessFailedError(f"{' '.join(command[:3])} ... ended with exit code {code}.", code)


@contextlib.contextmanager
def _process(command: Sequence[str], *, pipe: bool = False) -> "Iterator[subprocess.Popen[str]]":
    """Starts a process in its own process group. Leaving the `with` block ends the group if the process
    still runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOADTEST_", "LOCUST_"))}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE if pipe else None, text=True, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    for sign, seconds in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def tell(text: str) -> None:
    """Writes a line of progress to stderr."""
    sys.stderr.write(text + "\n")
