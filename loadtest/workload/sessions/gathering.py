"""Gathers the requests of sessions that stand apart in a file. Knows no file format.

All numbers lie in arrays, and each request knows where the one before it in its session lies: a million
requests take about 60 MB meanwhile, and the names of their sessions up to 150 MB.
"""

from array import array
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from loadtest.workload.sessions.recorded import FileError, LooseTurn, RecordedSession, session_of

_NONE = -1


class Gathering:
    """The requests of a file, by their sessions."""

    def __init__(self, path: Path, *, in_order_of_time: bool) -> None:
        """in_order_of_time: whether requests of a session follow each other in time; else they are sorted."""
        self._path = path
        self._in_order_of_time = in_order_of_time
        self._last: dict[str, int] = {}
        """Index of each session's last request so far. Sessions are in the order of their first requests."""
        self._before, self._numbers = array("q"), array("q")
        self._prompts, self._outputs, self._groups = array("q"), array("q"), array("q")
        self._at_s, self._end_s = array("d"), array("d")

    def sessions(self, turns: Iterator[LooseTurn]) -> Iterator[tuple[int, RecordedSession]]:
        """Yields each session with the number of its first request. Requests without a session's name are
        sessions of their own. Raises FileError if a session goes back in time."""
        for number, turn in enumerate(turns):
            if turn.session:
                self._add(number, turn)
            else:
                yield number, session_of([turn._replace(session=f"line {turn.line}")])
        for name, last in self._last.items():
            yield self._session(name, last)

    def _add(self, number: int, turn: LooseTurn) -> None:
        name, line, at_s, end_s, prompt, output, group = turn
        before = self._last.get(name, _NONE)
        if before != _NONE and self._in_order_of_time and at_s < self._at_s[before]:
            words = f"session {name} goes back in time ({at_s:g} after {self._at_s[before]:g})"
            raise FileError(self._path, line, words)
        self._last[name] = len(self._at_s)
        self._before.append(before)
        self._numbers.append(number)
        self._at_s.append(at_s)
        self._end_s.append(at_s if end_s is None else end_s)
        self._prompts.append(prompt)
        self._outputs.append(output)
        self._groups.append(hash(group) if group else 0)

    def _session(self, name: str, last: int) -> tuple[int, RecordedSession]:
        own = []
        at = last
        while at != _NONE:
            group = str(self._groups[at] or "")  # their names matter only where they are equal
            own.append(
                LooseTurn(
                    name, 0, self._at_s[at], self._end_s[at], self._prompts[at], self._outputs[at], group
                )
            )
            first, at = at, self._before[at]
        own.reverse()
        if not self._in_order_of_time:
            own.sort(key=attrgetter("at_s"))
        return self._numbers[first], session_of(own)
