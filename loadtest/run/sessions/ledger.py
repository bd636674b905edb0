"""The leader's ledger of recorded sessions: which of them is begun next, and what is said of their file.
Knows no network."""

from collections.abc import Iterator

import msgspec

from loadtest.errors import InputError
from loadtest.record import SessionsInfo
from loadtest.settings import RECORDED_ARRIVALS, Settings
from loadtest.workload.arrivals import ArrivalProcess
from loadtest.workload.sessions.book import SessionBook
from loadtest.workload.sessions.recorded import RecordedSession
from loadtest.workload.sessions.replay import HandedSession, SentTexts


class SessionLedger:
    """Hands out the sessions of a file, each to one process. Its methods must be called from greenlets of the
    main thread."""

    def __init__(self, settings: Settings) -> None:
        """Reads the file of the setting `sessions`. Raises InputError."""
        assert settings.sessions is not None
        self._settings = settings
        self._file = settings.sessions
        try:
            self._book = SessionBook(self._file)
        except OSError as error:
            raise InputError(f"--sessions: {self._file} cannot be read ({error.strerror}).") from None
        except ValueError as error:
            raise InputError(f"--sessions: {error}") from None
        self._sent = SentTexts()
        self._handed = 0
        self._due = self._starts()
        self._waiting: HandedSession | None = None
        try:
            self._refuse_missing_times()
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        self._book.close()

    @property
    def has_text(self) -> bool:
        """Whether some requests are sent with the text that the file has for them."""
        return self._book.facts.has_text

    @property
    def mean_pause_s(self) -> float:
        """Mean recorded pause before a request, in seconds."""
        return self._book.facts.mean_pause_s

    @property
    def begins(self) -> int:
        """Number of the file's sessions that begin, because their first request fits into the context."""
        return self._book.count()

    @property
    def begun_again(self) -> int:
        """Times that the file was handed out to its end and begun again."""
        return self._book.round

    def fit(self, room: int) -> None:
        """Cuts the sessions to the model's context. Raises InputError if none fits."""
        try:
            self._book.fit(room)
        except ValueError as error:
            raise InputError(f"--sessions: {error}") from None

    def info(self, *, kept_apart: bool) -> SessionsInfo:
        """Returns what `run.json` says of the sessions. kept_apart: whether texts of the file are kept apart
        from those of earlier runs in the server's prefix cache."""
        facts, (too_long, never_begun) = self._book.facts, self._book.too_long()
        return SessionsInfo(
            file=self._file.name,
            format=facts.format,
            sessions=facts.sessions,
            turns=facts.turns,
            has_text=facts.has_text,
            history=self._settings.session_history,
            times=self._settings.session_times,
            too_long=too_long,
            never_begun=never_begun,
            kept_apart=kept_apart and facts.has_text,
        )

    def warnings(self, info: SessionsInfo) -> list[str]:
        """Returns what of the file is left out or shortened, one sentence each."""
        found = list(self._book.facts.notes)
        if info.too_long:
            early = f", {info.never_begun:,} of them before their first turn" if info.never_begun else ""
            found.append(
                f"{info.too_long:,} of {info.sessions:,} sessions were longer than the model's context and "
                f"end early{early}."
            )
        return found

    def extent(self) -> tuple[int, float]:
        """Returns two numbers of an open loop: how many sessions begin, and within how many seconds."""
        settings = self._settings
        if settings.arrivals == RECORDED_ARRIVALS:
            return self._book.count(), self._book.starts_within_s() / settings.trace_speed
        law = ArrivalProcess.parse(settings.arrivals or "")
        count = sum(1 for _ in law.arrivals(seed=settings.seed, duration_s=settings.level_s))
        return count, settings.level_s

    def take(self) -> bytes:
        """Returns the next session of the file, for a user of a closed loop."""
        _, session = self._book.next_in_file()
        return _encoded(self._hand(session, due_s=None))

    def take_due(self, until_s: float) -> list[bytes]:
        """Open loop: returns the sessions that begin before `until_s`, in seconds after the start of the
        arrivals, and that were not returned before."""
        found = []
        while (handed := self._waiting or next(self._due, None)) is not None:
            self._waiting = handed
            assert handed.due_s is not None
            if handed.due_s > until_s:
                break
            found.append(_encoded(handed))
            self._waiting = None
        return found

    def _starts(self) -> Iterator[HandedSession]:
        settings = self._settings
        if settings.arrivals == RECORDED_ARRIVALS:
            for due_s, session in self._book.in_order_of_start():
                yield self._hand(session, due_s=due_s / settings.trace_speed)
        elif settings.arrivals is not None:
            law = ArrivalProcess.parse(settings.arrivals)
            for arrival in law.arrivals(seed=settings.seed, duration_s=settings.level_s):
                yield self._hand(self._book.next_in_file()[1], due_s=arrival.due_s)

    def _hand(self, session: RecordedSession, *, due_s: float | None) -> HandedSession:
        number, self._handed = self._handed, self._handed + 1
        round_ = self._book.round
        reusable = self._sent.add(session, round_=round_)
        return HandedSession(number=number, round=round_, due_s=due_s, reusable=reusable, session=session)

    def _refuse_missing_times(self) -> None:
        facts, settings = self._book.facts, self._settings
        if settings.arrivals == RECORDED_ARRIVALS and not facts.states_starts:
            raise InputError(
                f"--arrivals recorded: {self._file} does not say when its sessions began; begin them at a "
                "rate of your own, for example with --arrivals poisson:0.5."
            )
        if settings.session_times == "recorded" and not facts.states_times:
            raise InputError(
                f"--session-times recorded: {self._file} does not say when its turns were sent; leave it out."
            )


def _encoded(handed: HandedSession) -> bytes:
    return msgspec.msgpack.encode(handed)


def session_lines(info: SessionsInfo | None) -> list[str]:
    """Returns the opening line about the sessions; nothing if none are replayed."""
    if info is None:
        return []
    times = "at their recorded times" if info.times == "recorded" else "after their recorded pauses"
    text = "their own text" if info.has_text else "synthetic text of their lengths"
    return [
        f"sessions {info.sessions:,} of {info.turns:,} turns ({info.format}), {times}, with {text}; "
        f"{info.history} answers are sent back"
    ]
