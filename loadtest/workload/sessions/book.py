"""The book of a file's sessions, from which the leader of a run hands them out. It lies in a temporary file
on the disk, so that a file may be larger than memory."""

import sqlite3
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path

import msgspec

from loadtest.workload.sessions.formats import SessionFormat, recognise
from loadtest.workload.sessions.gathering import Gathering
from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.recorded import FileError, RecordedSession

_CACHE_KIB = 64 * 1024
_UNLIMITED = 1 << 62
_ADD_SESSION = "INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TABLE = (
    "CREATE TABLE session (number INTEGER PRIMARY KEY, start_s REAL, turns INT, first INT, longest INT, "
    "text INT, timed INT, pause_s REAL, data BLOB)"
)


class BookFacts(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a file of sessions before the first of them is sent."""

    format: str
    sessions: int
    turns: int
    has_text: bool
    """Whether some of its requests are sent with the text that the file has for them."""
    states_starts: bool
    """Whether it says of all sessions when they began."""
    mean_pause_s: float
    """Mean seconds before a request: pauses in sessions, and none before a session's first request."""
    states_times: bool
    """Whether it says of all requests when they were sent."""
    notes: list[str]
    """What of the file is left out, or taken otherwise than it stands there; one sentence each."""


class SessionBook:
    """All sessions of one file, numbered in their order there."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises OSError, or ValueError with a sentence that names the file and the line."""
        self.round = 0
        """Times that `next_in_file` has come to the end of the file."""
        self._path = path
        self._room = _UNLIMITED
        # An empty name makes a private file, which the system removes however this process ends.
        self._database = sqlite3.connect("", isolation_level=None)
        try:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute(_TABLE)
            form = recognise(path)
            with path.open("rb") as opened:
                file = SessionFile(path, opened)
                self._database.execute("BEGIN")
                self._fill(form, file)
                self._database.execute("COMMIT")
            self.facts = self._facts(form.name, file)
        except OverflowError:
            self.close()
            raise file.error("a number is too large") from None
        except sqlite3.Error as error:
            self.close()
            raise FileError(
                path, None, f"no temporary file can hold its sessions ({error}); SQLITE_TMPDIR names a folder"
            ) from None
        except BaseException:
            self.close()
            raise
        self._following: Iterator[tuple[int, RecordedSession]] = self._in_order("number")

    def close(self) -> None:
        self._database.close()

    def fit(self, room: int) -> None:
        """Cuts the sessions to a context of `room` tokens, prompt and answer together: each ends before its
        first request that is longer. Raises ValueError if not even a first request fits."""
        self._room = room
        if self.too_long()[1] == self.facts.sessions:
            raise FileError(
                self._path,
                None,
                f"no session fits into the model's context ({room:,} tokens can be used), not even with its "
                "first turn",
            )

    def too_long(self) -> tuple[int, int]:
        """Returns how many sessions end early because of the context, and how many of them never begin."""
        found = self._database.execute(
            "SELECT coalesce(sum(longest > ?1), 0), coalesce(sum(first > ?1), 0) FROM session", [self._room]
        ).fetchone()
        return int(found[0]), int(found[1])

    def next_in_file(self) -> tuple[int, RecordedSession]:
        """Returns the number and the content of the next session of the file; the first one again after the
        last."""
        found = next(self._following, None)
        if found is None:
            self.round += 1
            self._following = self._in_order("number")
            found = next(self._following)
        return found

    def in_order_of_start(self) -> Iterator[tuple[float, RecordedSession]]:
        """Yields the sessions in the order of their starts: when each begins, in seconds after the first of
        all, and its content."""
        first_s, _ = self._span_s()
        for _, session in self._in_order("start_s, number"):
            yield (session.start_s or 0.0) - first_s, session

    def count(self) -> int:
        """Returns the number of sessions that begin, those whose first request fits into the context."""
        return self.facts.sessions - self.too_long()[1]

    def starts_within_s(self) -> float:
        """Returns the seconds between the starts of the first and of the last session."""
        first_s, last_s = self._span_s()
        return last_s - first_s

    def _span_s(self) -> tuple[float, float]:
        query = "SELECT coalesce(min(start_s), 0), coalesce(max(start_s), 0) FROM session WHERE first <= ?"
        first_s, last_s = self._database.execute(query, [self._room]).fetchone()
        return first_s, last_s

    def _in_order(self, columns: str) -> Iterator[tuple[int, RecordedSession]]:
        query = f"SELECT number, data FROM session WHERE first <= ? ORDER BY {columns}"
        decode = msgspec.msgpack.Decoder(RecordedSession).decode
        for number, data in self._database.execute(query, [self._room]):
            yield number, self._cut(decode(data))

    def _cut(self, session: RecordedSession) -> RecordedSession:
        for count, (_, tokens) in enumerate(session.contexts()):
            if tokens > self._room:
                return msgspec.structs.replace(session, turns=session.turns[:count])
        return session

    def _fill(self, form: SessionFormat, file: SessionFile) -> None:
        if form.sessions is not None:
            self._database.executemany(_ADD_SESSION, starmap(_row, enumerate(form.sessions(file))))
        if form.turns is not None:
            gathering = Gathering(self._path, in_order_of_time=form.in_order_of_time)
            self._database.executemany(_ADD_SESSION, starmap(_row, gathering.sessions(form.turns(file))))

    def _facts(self, name: str, file: SessionFile) -> BookFacts:
        query = (
            "SELECT count(*), sum(turns), max(text), count(start_s), min(timed), sum(pause_s) FROM session"
        )
        sessions, turns, text, started, timed, pause_s = self._database.execute(query).fetchone()
        if not sessions:
            raise FileError(file.path, None, "the file holds no session that can be replayed")
        return BookFacts(
            format=name,
            sessions=sessions,
            turns=turns,
            has_text=bool(text),
            states_starts=started == sessions,
            mean_pause_s=pause_s / turns,
            states_times=bool(timed),
            notes=file.noted(),
        )


def _row(number: int, session: RecordedSession) -> tuple[object, ...]:
    """Returns the row of a session. A million of them should take seconds, so there are plain loops here."""
    longest = history = 0
    pause_s = -session.turns[0].pause_s
    text, timed = False, True
    for turn in session.turns:
        history = turn.prompt_tokens + turn.output_tokens + (0 if turn.anew else history)
        longest = max(longest, history)
        text = text or turn.messages is not None
        timed = timed and turn.at_s is not None
        pause_s += turn.pause_s
    first = session.turns[0].prompt_tokens + session.turns[0].output_tokens
    data = _encode(session)
    return number, session.start_s, len(session.turns), first, longest, text, timed, pause_s, data


_encode = msgspec.msgpack.Encoder().encode
