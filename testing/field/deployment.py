"""The small deployment of the cases: a pool of 640 tokens, and traffic of which some eleven users fill it."""

import functools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testing.field.case import Judged, judged, unless
from testing.field.commands import Analysed, analyse_run, user_load
from testing.load_tests import Finished
from testing.processes import ROOT, clean_environment, free_port, listening, simulator, until

SMALL_POOL = ("--num-gpu-blocks-override", "41")
TRAFFIC = {"output_tokens": "lognormal:16,0.4", "settle_s": "1"}
SHORT_TRAFFIC = {**TRAFFIC, "output_tokens": "4-6"}
"""Short answers: enough requests in a few seconds to know that fewer than 1 % fail."""
SWEEP = {**TRAFFIC, "levels": "4,8,12", "level_s": "6"}
"""A sweep across the memory wall."""
CLEAN_TRIES = 3


class KillableServer:
    """The embedded server on a port of its own, which can be killed and started again."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Starts it and waits until it listens. Later flags replace earlier ones."""
        command = [sys.executable, "-m", "loadtest.simulator", "--port", str(self.port), *self._flags, *more]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL
        )
        until(20, lambda: listening(self.port))

    def kill(self) -> None:
        """Kills it at once: connections are lost, and counters begin at 0 with the next start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def killable_server(*flags: str) -> Iterator[KillableServer]:
    """Starts an embedded server that can be killed and started again."""
    server = KillableServer(*flags)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def small_server(*flags: str) -> Iterator[str]:
    """Starts the small deployment and yields its address."""
    with simulator(*SMALL_POOL, "--enable-prompt-tokens-details", *flags) as url:
        yield url


_clean_lock = threading.Lock()


@functools.cache
def _clean_answer() -> Analysed:
    for _ in range(CLEAN_TRIES):
        with tempfile.TemporaryDirectory() as name, small_server() as url:
            folder = Path(name)
            user_load(folder, url)(**SWEEP)
            answer = analyse_run(folder)
        if answer.model.get("binding") == "kv_cache":
            return answer
    raise AssertionError(f"no answer about the undisturbed deployment: {answer.brief}")


def clean_answer() -> Analysed:
    """The answer about the small deployment when nothing stands in its way; measured once a process."""
    with _clean_lock:
        return _clean_answer()


def memory_wall_right() -> str:
    model = clean_answer().model
    low, high = model["interval_x"]
    return f"KV cache, {model['estimate_x']:.1f} users ({low:.1f} to {high:.1f})"


def is_memory_wall(answer: Analysed, *, off: float = 1.0) -> bool:
    """Whether an answer names the memory wall, within so many users of the undisturbed answer, or where the
    two intervals meet."""
    clean, model = clean_answer().model, answer.model
    if not model or model["refused"] or model["binding"] != "kv_cache" or model["estimate_x"] is None:
        return False
    (low, high), (clean_low, clean_high) = model["interval_x"], clean["interval_x"]
    meets = low <= clean_high and clean_low <= high
    return bool(meets or abs(model["estimate_x"] - clean["estimate_x"]) <= off)


def errors_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Counts the outcomes of the rows other than ok and cancelled."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["outcome"] not in ("ok", "cancelled"):
            counts[row["outcome"]] = counts.get(row["outcome"], 0) + 1
    return counts


def refused_at_start(run: Finished, *words: str) -> Judged:
    """Judges a load test that must not start, and must say these words."""
    last = (run.said.strip().splitlines() or ["nothing"])[-1]
    return judged(
        f"exit 2, and a sentence with {', '.join(words)}",
        f"exit {run.code}: {last}",
        unless(run.code == 2, "another exit code"),
        *(unless(word.lower() in run.said.lower(), f"'{word}' is not said") for word in words),
        "Traceback" in run.said and "a traceback",
    )
