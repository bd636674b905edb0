"""Recorded sessions in one process: the supply of a closed loop's users, and the sessions of an open loop,
each in a greenlet of its own."""

import collections
import heapq
import logging
from collections.abc import Callable, Iterable

import gevent
import msgspec
from gevent.pool import Group

from loadtest.clock import unix_now
from loadtest.record import Outcome, RequestRecord
from loadtest.run.open_loop import LOOKAHEAD_S
from loadtest.workload.conversations import ChatRequest
from loadtest.workload.sessions.replay import HandedSession, SessionReplay

logger = logging.getLogger(__name__)

LOW_SUPPLY = 2
"""Sessions left at which more are asked for, so that users rarely wait for them."""
SUPPLY_WAIT_S = 0.002
"""Seconds between two looks whether sessions have come."""
IN_TIME_S = 0.01
"""Delay, in seconds, up to which a turn counts as sent in time."""

Replayer = Callable[[HandedSession], SessionReplay]
SendTurn = Callable[[ChatRequest, SessionReplay, float, float | None], tuple[RequestRecord, str] | None]
"""Sends a turn when it is due (Unix seconds), with its lateness; returns None if the run ends before."""


def lateness_s(due_unix_s: float) -> float | None:
    """Returns by how much a turn that could be sent now is late, in seconds; None if it is in time."""
    late_s = unix_now() - due_unix_s
    return late_s if late_s > IN_TIME_S else None


class SessionSupply:
    """Asks for sessions before they run out. Its methods must be called from greenlets of the main thread."""

    def __init__(self, *, replay: Replayer, ask: Callable[[], None]) -> None:
        self._replay = replay
        self._ask = ask
        self._asked = False
        self._waiting: collections.deque[HandedSession] = collections.deque()

    def take(self, sessions: Iterable[bytes]) -> None:
        self._waiting.extend(map(_decode, sessions))
        self._asked = False

    def wait(self, closing: Callable[[], bool]) -> bool:
        """Waits for a session. Returns False if `closing` becomes true before one comes."""
        while True:
            if len(self._waiting) <= LOW_SUPPLY and not self._asked:
                self._asked = True
                self._ask()
            if self._waiting:
                return True
            if closing():
                return False
            gevent.sleep(SUPPLY_WAIT_S)

    def next(self) -> SessionReplay:
        """Returns the next session. Raises IndexError if there is none."""
        return self._replay(self._waiting.popleft())


class OpenSessions:
    """Plays the sessions of an open loop: each begins when it is due, and none waits for another."""

    def __init__(self, *, replay: Replayer, send: SendTurn, speed: float, recorded_times: bool) -> None:
        """speed: factor by which recorded times pass faster. recorded_times: whether turns are sent at their
        recorded times, and not after their pauses."""
        self._replay = replay
        self._send = send
        self._speed = speed
        self._recorded_times = recorded_times
        self._waiting: list[tuple[float, int, HandedSession]] = []
        """Sessions that have not begun, by when they are due by the leader's clock."""
        self._playing = Group()
        self.cut = 0
        """Sessions that ended early, because their history filled the model's context."""

    @property
    def active(self) -> bool:
        """Whether some sessions have not ended."""
        return bool(self._waiting or len(self._playing))

    def take(self, sessions: Iterable[bytes], *, start_unix_s: float) -> None:
        """Adds sessions. start_unix_s: the start of the arrivals, by the leader's clock."""
        for handed in map(_decode, sessions):
            assert handed.due_s is not None
            heapq.heappush(self._waiting, (start_unix_s + handed.due_s, handed.number, handed))

    def begin_due(self, *, clock_offset_s: float) -> None:
        """Begins to play the sessions that are due soon. clock_offset_s: seconds by which the clock of this
        machine is ahead of the leader's."""
        until = unix_now() - clock_offset_s + LOOKAHEAD_S
        while self._waiting and self._waiting[0][0] <= until:
            due_unix_s, _, handed = heapq.heappop(self._waiting)
            start_unix_s = due_unix_s + clock_offset_s
            self._playing.add(gevent.spawn(self._play, self._replay(handed), start_unix_s))

    def stop(self) -> None:
        """Ends all sessions. Their requests in flight go on until they are cancelled."""
        self._waiting.clear()
        self._playing.kill(block=False)

    def _play(self, replay: SessionReplay, start_unix_s: float) -> None:
        due_unix_s = free_unix_s = start_unix_s
        for request in replay.requests():
            sent = self._send(request, replay, max(due_unix_s, free_unix_s), lateness_s(due_unix_s))
            if sent is None or sent[0].outcome is Outcome.CANCELLED:
                return
            record, text = sent
            if record.outcome is Outcome.OK:
                replay.answered(
                    text,
                    prompt_tokens=record.prompt_tokens,
                    output_tokens=record.output_tokens,
                    chunks=len(record.chunk_s),
                )
            else:
                replay.failed()
            following = replay.following
            if following is None:
                break
            free_unix_s = record.start_unix_s + record.end_s  # before, no turn can be due
            due_unix_s = free_unix_s + following.pause_s
            if self._recorded_times and following.at_s is not None:
                due_unix_s = start_unix_s + following.at_s / self._speed
            gevent.sleep(max(0.0, due_unix_s - unix_now() - LOOKAHEAD_S))
        self.cut += replay.cut


_decode = msgspec.msgpack.Decoder(HandedSession).decode
