"""The other end of the search: `python -m analysis.search` as a process of its own, asked by JSON lines over
its pipes. Statistics in this process would cost the measurement CPU and the GIL; so they are computed there,
at low priority. Knows no Locust."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

import gevent
import msgspec
from gevent import subprocess

from loadtest.record import SearchAdvice, SearchState

NICENESS = "10"
"""Low priority (the lowest is 19): a load generator that needs the same core goes first."""
CONCLUDE_S = 15.0
"""How long the last answer, after the run, may take."""
END_S = 5.0
"""How long a failing advisor may take to say why."""
_ROOT = Path(__file__).resolve().parents[2]
"""Where `analysis` lies beside this package."""


class AdvisorLostError(Exception):
    """The advisor gives no answers any more; the message says why, in a few words."""


class Advisor:
    """The advisor of one run. Methods are for greenlets of the main thread and let the others run."""

    def __init__(self, folder: Path) -> None:
        self.asking = False
        """Whether an answer is awaited, or waits to be taken."""
        self._latest: SearchAdvice | None = None
        self._answer: SearchAdvice | AdvisorLostError | None = None
        self._asker: gevent.Greenlet[..., None] | None = None
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
        """Asks and waits for the answer. Raises AdvisorLostError."""
        try:
            self._to.write(msgspec.json.encode(state) + b"\n")
            self._to.flush()
            self._latest = msgspec.json.decode(self._from.readline(), type=SearchAdvice)
        except (OSError, msgspec.DecodeError):
            raise AdvisorLostError(self._last_words()) from None
        return self._latest

    def begin_asking(self, state: SearchState, *, after_s: float) -> None:
        """Asks in another greenlet after `after_s`; the caller fetches the answer with `take`."""
        self.asking = True
        self._asker = gevent.spawn_later(after_s, self._ask_beside, state)

    def _ask_beside(self, state: SearchState) -> None:
        try:
            self._answer = self.ask(state)
        except AdvisorLostError as error:
            self._answer = error

    def take(self) -> SearchAdvice | None:
        """Returns the answer that has come, once; None where none has. Raises AdvisorLostError."""
        answer, self._answer = self._answer, None
        if answer is not None:
            self.asking = False
        if isinstance(answer, AdvisorLostError):
            raise answer
        return answer

    def conclude(self) -> SearchAdvice | None:
        """Returns the answer after the run; where that fails or takes too long, the last one before."""
        try:
            with gevent.Timeout(CONCLUDE_S):
                if self._asker is not None:
                    self._asker.join()
                return self.ask(SearchState(left_s=0.0))
        except (gevent.Timeout, AdvisorLostError):
            return self._latest

    def close(self) -> None:
        """Ends the process, whatever it is doing. May be called twice."""
        if self._asker is not None:
            self._asker.kill()
        if self._process.poll() is None:
            self._process.kill()  # it has nothing to lose
            self._process.wait()
        for pipe in (self._to, self._from, self._complaints):
            with contextlib.suppress(OSError):
                pipe.close()

    def _last_words(self) -> str:
        """The line of the process's traceback that names the error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip()
        return said.rpartition("\n")[2] or f"it ended with code {self._process.returncode}"
