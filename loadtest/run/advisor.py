"""Starts the advisor of a run as a process of its own, `python -m analysis.search`, and asks it over pipes:
one JSON line for a question, one for an answer. The advisor runs at low priority. In the leader's process,
its statistics would take CPU time and the GIL from the measurement. Knows no Locust."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, TypeVar

import gevent
import msgspec
from gevent import subprocess
from gevent.lock import RLock

from loadtest.record import LevelQuestion, LevelVerdict, SearchAdvice, SearchState

ROWS_S = 1.0
"""Seconds after a request's end by which its row is on the leader's disk: more than FLUSH_S, plus SHIP_S for
a worker on another machine."""
NICENESS = "10"
"""Niceness of the advisor's process, so that a load generator on the same core goes first (19 is last)."""
CONCLUDE_S = 15.0
"""Seconds that the last answer, after the run, may take."""
END_S = 5.0
"""Seconds that a failing advisor may take to exit, so that its error can be read."""
_T = TypeVar("_T", bound=msgspec.Struct)
_ROOT = Path(__file__).resolve().parents[2]
"""The folder that contains `analysis` and this package."""


class AdvisorLostError(Exception):
    """Raised when the advisor no longer answers. The message says why, in a few words."""


class Advisor:
    """Starts the advisor's process for one run and asks it. Its methods must be called from greenlets of the
    main thread; while a method waits, other greenlets run."""

    def __init__(self, folder: Path) -> None:
        self.asking = False
        """Whether an answer is awaited, or has come and was not taken yet."""
        self.latest: SearchAdvice | None = None
        """The last advice in a search; None before the first, and in other runs."""
        self._answer: SearchAdvice | LevelVerdict | AdvisorLostError | None = None
        self._asker: gevent.Greenlet[..., None] | None = None
        self._turn = RLock()
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            ["nice", "-n", NICENESS, sys.executable, "-m", "analysis.search", str(folder.resolve())],
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # one core at most
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,  # a terminal's Ctrl-C is ours; the end of its stdin ends it in any case
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def ask(self, state: SearchState) -> SearchAdvice:
        """Sends the state of the search, waits for the advice and returns it. Raises AdvisorLostError."""
        self.latest = self._exchange(state, SearchAdvice)
        return self.latest

    def _exchange(self, question: msgspec.Struct, answer: type[_T]) -> _T:
        try:
            with self._turn:  # an answer that nobody waits for any more may still be on its way
                self._to.write(msgspec.json.encode(question) + b"\n")
                self._to.flush()
                return msgspec.json.decode(self._from.readline(), type=answer)
        except (OSError, msgspec.DecodeError):
            raise AdvisorLostError(self._last_words()) from None

    def begin_asking(self, question: SearchState | LevelQuestion, *, after_s: float) -> None:
        """Plans a question to the advisor in `after_s` seconds and returns at once. The caller fetches the
        answer with `take` or `take_verdict`."""
        self.asking = True
        self._asker = gevent.spawn_later(after_s, self._ask_beside, question)

    def _ask_beside(self, question: SearchState | LevelQuestion) -> None:
        try:
            if isinstance(question, LevelQuestion):
                self._answer = self._exchange(question, LevelVerdict)
            else:
                self._answer = self.ask(question)
        except AdvisorLostError as error:
            self._answer = error

    def take(self) -> SearchAdvice | None:
        """Returns the answer to `begin_asking` if it has come, and only once; None if there is none to
        return. Raises AdvisorLostError."""
        answer = self._taken()
        return answer if isinstance(answer, SearchAdvice) else None

    def take_verdict(self) -> LevelVerdict | None:
        """Returns the verdict that was asked for with `begin_asking` if it has come, and only once; None if
        there is none to return. Raises AdvisorLostError."""
        answer = self._taken()
        return answer if isinstance(answer, LevelVerdict) else None

    def _taken(self) -> SearchAdvice | LevelVerdict | None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self.asking = False
        if isinstance(answer, AdvisorLostError):
            raise answer
        return answer

    def conclude(self) -> SearchAdvice | None:
        """Asks for the final answer after the run and returns it. If this fails or takes longer than
        CONCLUDE_S, returns the answer before it; None if there was none."""
        try:
            with gevent.Timeout(CONCLUDE_S):
                if self._asker is not None:
                    self._asker.join()
                return self.ask(SearchState(left_s=0.0))
        except (gevent.Timeout, AdvisorLostError):
            return self.latest

    def close(self) -> None:
        """Kills the advisor's process, whatever it is doing. May be called twice."""
        if self._asker is not None:
            self._asker.kill()
        if self._process.poll() is None:
            self._process.kill()  # it has nothing to lose
            self._process.wait()
        for pipe in (self._to, self._from, self._complaints):
            with contextlib.suppress(OSError):
                pipe.close()

    def _last_words(self) -> str:
        """Returns why the process failed: the last line of its traceback, which names the error. Without a
        traceback, returns its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip()
        return said.rpartition("\n")[2] or f"it ended with code {self._process.returncode}"
