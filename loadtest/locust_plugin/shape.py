"""The base class of all plans of users. Once a second, Locust asks the plan for the number of users. Knows
nothing of requests."""

import logging
import math
import time
from abc import abstractmethod
from collections import Counter
from typing import ClassVar

from locust import LoadTestShape

from loadtest.clock import unix_now
from loadtest.locust_plugin.leader import STOP_DRAIN_S, Leader
from loadtest.run.coordinator import Coordinator, opening_lines
from loadtest.run.live.level import LiveLevel, in_words
from loadtest.settings import Settings

logger = logging.getLogger(__name__)

FAST_SPAWN_RATE = 100.0
"""Users to start per second unless the user sets a rate; with more, Locust warns."""

MAX_REPEATS = 2
"""Times that a level is held again because the server was away or was started again."""

UsersAndSpawnRate = tuple[int, float] | None
"""A number of users, and how many of them to start per second; None ends the test."""


class Shape(LoadTestShape):
    """Plans the number of users of a run. The number changes without a restart of the run, and at the end
    streams may finish."""

    abstract: ClassVar[bool] = True
    use_common_options: ClassVar[bool] = True
    leader: Leader
    scenario = ""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coordinator: Coordinator | None = None
        self._users = 0
        self._spawn_rate = FAST_SPAWN_RATE
        self._fresh = False
        self._until: float | None = None
        self._away_since: float | None = None
        """When the present absence of the server began; None while the server answers."""
        self._absences_seen = 0
        self._broken_off: int | None = None
        """Users of the level that an absence has ended, which is to be held again; else None."""
        self._closing: LiveLevel | None = None
        """The level that has ended and is being judged; else None."""
        self._repeats: Counter[int] = Counter()
        """Times that levels were held again because of the server, by users."""

    def serve(self, leader: Leader, *, scenario: str) -> None:
        """Sets the leader whose runs this shape plans. Called once, when Locust is ready."""
        self.leader = leader
        self.scenario = scenario

    def reset_time(self) -> None:
        """Notes that a test begins. Locust calls this method at the start of a test; Locust's master calls it
        twice."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self._fresh = self.leader.coordinator is None

    def tick(self) -> UsersAndSpawnRate:
        """Returns the number of users to run from now on, and how many to start per second; None ends the
        test. Locust calls it once a second, in the master or in the only process."""
        if self._fresh:
            self._fresh = False
            self._away_since = self._broken_off = self._closing = None
            self._absences_seen = 0
            self._repeats.clear()
            self._coordinator = self.leader.begin(self.scenario, check=self._check)
            return self._begin(self._coordinator) if self._coordinator is not None else None
        coordinator = self._coordinator
        if coordinator is None or coordinator is not self.leader.coordinator:
            return self._users, self._spawn_rate  # being stopped by somebody else: ask for nothing new
        self.leader.keep_level()
        coordinator.watch_server()
        self._show_state(coordinator)
        if self._until is not None and time.monotonic() >= self._until:
            logger.info("The time limit is reached.")
            self._end(drain_s=STOP_DRAIN_S)
            return None
        if coordinator.absences.is_lost(unix_now()):
            self._give_up_server(coordinator)
            return None
        if coordinator.refusals.is_final:
            self._give_up_asking(coordinator)
            return None
        if self._is_interrupted(coordinator):
            return self._users, self._spawn_rate
        return self._go_on(coordinator)

    def _is_interrupted(self, coordinator: Coordinator) -> bool:
        """Breaks off the level if the server was away or was started again in it, and begins it anew when the
        server is back and nobody pauses because of the absence any more. Returns whether the plan has to wait
        for that. An open loop goes on."""
        if coordinator.settings.open_loop:
            return False
        self._follow_absences(coordinator)
        if self._away_since is not None:
            return True
        if self._broken_off is None:
            return False
        if coordinator.level is not None:  # users were moved between workers, and the level began by itself
            self._broken_off = None
            return False
        now = unix_now()
        if now >= coordinator.absences.calm_unix_s and not coordinator.absences.is_unclear(now):
            users, self._broken_off = self._broken_off, None
            self.leader.begin_level(users)
        return True

    def _follow_absences(self, coordinator: Coordinator) -> None:
        absences, level = coordinator.absences, coordinator.level or self._closing
        ended = absences.away[self._absences_seen :]
        self._absences_seen += len(ended)
        since, before = absences.since_unix_s, self._away_since
        self._away_since = since
        if since is not None and before is None:
            self.leader.line.clear()
            kinds = in_words(absences.kinds)
            logger.warning("The server does not answer (%s); it is waited for.", kinds)
        if since is None and ended and before is not None:
            begin, end = ended[-1]
            logger.info("The server is back; it was away for %.0f s.", end - begin)
        if level is None or self._repeats[self._users] > MAX_REPEATS:
            return
        ended_at = level.end_unix_s if level is self._closing else math.inf
        touched = [begin for begin, end in ended if end > level.start_unix_s]
        if since is not None:
            touched.append(since)
        if any(begin < ended_at for begin in touched):
            self._break_off(coordinator, "the server was away")
        elif level.restarted:
            self._break_off(coordinator, "the server was started again")

    def _break_off(self, coordinator: Coordinator, why: str) -> None:
        self.leader.line.clear()
        self.leader.leave_level()
        self._closing = None
        self._repeats[self._users] += 1
        if self._repeats[self._users] > MAX_REPEATS:
            self._pass_over(coordinator, why)
            return
        self._broken_off = self._users
        logger.info("The level of %d users is held again: %s.", self._users, why)

    def _pass_over(self, coordinator: Coordinator, why: str) -> None:
        """Decides what follows a level that was broken off more than MAX_REPEATS times."""
        self._broken_off = self._users

    def _give_up_server(self, coordinator: Coordinator) -> None:
        absences = coordinator.absences
        assert absences.since_unix_s is not None
        self.leader.line.clear()
        self.leader.ending.fail(
            f"The server stayed away: no request was answered for {unix_now() - absences.since_unix_s:.0f} s "
            f"({in_words(absences.kinds)}). The run ends; all of its rows are kept."
        )
        self._end(drain_s=STOP_DRAIN_S)

    def _give_up_asking(self, coordinator: Coordinator) -> None:
        refusals = coordinator.refusals
        self.leader.line.clear()
        said = f' with the words "{refusals.words}"' if refusals.words else ""
        self.leader.ending.fail(
            f"The server refuses every request ({in_words(refusals.kinds)}){said}. The run ends; all of its "
            "rows are kept."
        )
        self._end(drain_s=STOP_DRAIN_S)

    def _show_state(self, coordinator: Coordinator) -> None:
        if self._away_since is None:
            self._show(coordinator)
        else:
            kinds = in_words(coordinator.absences.kinds)
            away_s = unix_now() - self._away_since
            self.leader.line.show(f"the server has not answered for {away_s:.0f} s ({kinds})")

    @abstractmethod
    def _check(self, settings: Settings) -> None:
        """Raises InputError if this plan cannot follow the settings."""

    @abstractmethod
    def _begin(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        """Returns the number of users at the start of the run and how many to start per second; None ends the
        test."""

    @abstractmethod
    def _go_on(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        """Returns the number of users to run from now on and how many to start per second; None ends the
        test."""

    @abstractmethod
    def _show(self, coordinator: Coordinator) -> None:
        """Shows the state of the run on the live line."""

    def _announce(self, coordinator: Coordinator, plan: str) -> None:
        for text in opening_lines(coordinator, plan=plan):
            logger.info(text)

    def _rate(self) -> float:
        return float(self.leader.options.spawn_rate or FAST_SPAWN_RATE)

    def _end(self, *, drain_s: float) -> None:
        self.leader.end(drain_s=drain_s)
        self._coordinator = None
