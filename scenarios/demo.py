"""`make demo`: the whole path against the embedded server, in under two minutes. Runs the user's own commands
as processes and ends every one of them, also when interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PRESET = "qwen3-1.7b-t4"
BLOCKS = 201
"""A pool of 3,200 tokens instead of the T4's 79,568: so small that requests of a second reach its wall."""
LEVELS = "4,8,12,16,20"
LEVEL_S = 18
WORKLOAD = {"--prompt-tokens": "lognormal:128,0.5", "--output-tokens": "lognormal:32,0.5"}
SETTLE_S = 2
REPORTS = Path("reports") / "demo"
READY = " on "


def main() -> int:
    """Serves, loads, analyses; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with _process([sys.executable, "-m", "loadtest.simulator", *_server_flags()], pipe=True) as server:
            return _load_and_analyse(server)
    except KeyboardInterrupt:
        _say("Interrupted; nothing is left running.")
        return 130


def _server_flags() -> list[str]:
    return ["--preset", PRESET, "--port", "0", "--num-gpu-blocks-override", str(BLOCKS)]


def _load_and_analyse(server: "subprocess.Popen[str]") -> int:
    assert server.stdout is not None
    line = server.stdout.readline().strip()
    if READY not in line:
        _say("The embedded server did not start.")
        return 1
    _say(line)
    _say(
        f"The pool is reduced to {BLOCKS - 1} blocks, so that short chats reach its wall in a minute: the "
        "answer below is for that pool, not for a whole T4."
    )
    host = line.rpartition(READY)[2]
    with _process(_locust(host)) as load:
        code = load.wait()
    if code != 0:
        return code
    with _process([sys.executable, "-m", "analysis.capacity", str(REPORTS)]) as analysis:
        return analysis.wait()


def _locust(host: str) -> list[str]:
    flags = {
        "--host": host,
        "--levels": LEVELS,
        "--level-s": str(LEVEL_S),
        "--settle-s": str(SETTLE_S),
        "--reports-dir": str(REPORTS),
        **WORKLOAD,
    }
    words = [word for pair in flags.items() for word in pair]
    locust = Path(sys.executable).with_name("locust")
    return [str(locust), "-f", str(Path("scenarios") / "chat.py"), "--headless", *words]


@contextlib.contextmanager
def _process(command: Sequence[str], *, pipe: bool = False) -> "Iterator[subprocess.Popen[str]]":
    """A process in a group of its own, which is gone when the block is left."""
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


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
