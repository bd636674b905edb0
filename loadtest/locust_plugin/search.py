"""The plan of a search for the largest number of users that the server holds. A second process, the advisor,
reads the rows so far and says which number of users to hold next. Knows no statistics."""

import logging
import time

from loadtest.clock import unix_now
from loadtest.errors import InputError
from loadtest.locust_plugin.leader import STOP_DRAIN_S, Leader
from loadtest.locust_plugin.shape import Shape, UsersAndSpawnRate
from loadtest.record import SearchAdvice, SearchState
from loadtest.run.advisor import ROWS_S, Advisor, AdvisorLostError
from loadtest.run.coordinator import Coordinator
from loadtest.run.live.absence import REPORTED_S
from loadtest.run.live.level import LiveLevel
from loadtest.run.live.line import live_text
from loadtest.settings import Settings

logger = logging.getLogger(__name__)


class SearchShape(Shape):
    """Holds the number of users that the advisor names. Ends when the advisor knows enough or the time budget
    is used up. The load continues while the advisor computes."""

    def __init__(self) -> None:
        super().__init__()
        self._advice: SearchAdvice | None = None
        self._advised_unix_s = 0.0
        self._alarms: set[tuple[float, str]] = set()
        self._stale = False
        """Whether the advice that is awaited is about a level that was broken off."""

    def serve(self, leader: Leader, *, scenario: str) -> None:
        super().serve(leader, scenario=scenario)
        type(self).use_common_options = False  # from now on: the web form needs no field for users

    def _check(self, settings: Settings) -> None:
        if settings.levels or self.leader.options.users_flag_given:
            raise InputError(
                "The search chooses the users itself: leave out --levels and -u, or run scenarios/chat.py."
            )
        if settings.open_loop:
            raise InputError(
                "A search cannot be combined with --arrivals or --trace: an open loop has no users. Run "
                "scenarios/chat.py."
            )
        if self.leader.options.given("level_s"):
            raise InputError(
                "The search decides how long a level lasts: leave out --level-s; --budget-s limits the whole."
            )

    def _begin(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        self._advice = None
        self._users, self._spawn_rate = 0, self._rate()
        self._alarms.clear()
        self._stale = False
        self.leader.let_surplus_finish(STOP_DRAIN_S)  # behind a long queue they would take the whole budget
        limits_s = [coordinator.settings.budget_s, self.leader.options.run_time_s]
        seconds = min(limit_s for limit_s in limits_s if limit_s is not None)
        self._announce(coordinator, f"a search for the most users, at most {seconds:.0f} s")
        coordinator.advisor = Advisor(coordinator.folder)
        try:
            advice = coordinator.advisor.ask(SearchState(left_s=seconds))
        except AdvisorLostError as error:
            self._give_up(error)
            return None
        self._until = time.monotonic() + seconds
        return self._follow(advice)

    def _go_on(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        assert coordinator.advisor is not None
        try:
            advice = coordinator.advisor.take()
        except AdvisorLostError as error:
            self._give_up(error)
            return None
        if advice is not None and not self._stale:
            return self._follow(advice)
        self._stale = self._stale and advice is None
        if (
            coordinator.level is not None
            and not coordinator.advisor.asking
            and not coordinator.absences.is_unclear(coordinator.level.end_unix_s - REPORTED_S)
            and self._look_is_due(coordinator.level)
        ):
            self._look(coordinator, coordinator.advisor, coordinator.level)
        return self._users, self._spawn_rate

    def _look_is_due(self, level: LiveLevel) -> bool:
        """Whether to ask the advisor now. True in either of two cases:

        - The last advice and the start of the level are both at least `look_s` seconds ago.
        - The level is past a wall (such as the TTFT objective), or far past a wall. Each such finding counts
          only once in a level.
        """
        assert self._advice is not None
        alarm = level.far_past_wall() or level.past_wall()
        if alarm is not None and (level.start_unix_s, alarm) not in self._alarms:
            self._alarms.add((level.start_unix_s, alarm))
            return True
        since = max(self._advised_unix_s, level.start_unix_s)
        return unix_now() - since >= self._advice.look_s

    def _look(self, coordinator: Coordinator, advisor: Advisor, level: LiveLevel) -> None:
        """Writes `run.json` and plans the question to the advisor in ROWS_S seconds; by then, the rows so far
        are on the disk."""
        self.leader.keep_level()
        coordinator.info.workers = self.leader.reports.workers()
        coordinator.save()
        held_s = level.end_unix_s - level.start_unix_s
        state = SearchState(holding=level.users, held_s=held_s, left_s=self._left_s())
        advisor.begin_asking(state, after_s=ROWS_S)

    def _follow(self, advice: SearchAdvice) -> UsersAndSpawnRate:
        self._advice, self._advised_unix_s = advice, unix_now()
        if advice.users is None:
            self.leader.line.clear()
            logger.info("The search ends: %s.", advice.why)
            self._end(drain_s=STOP_DRAIN_S)
            return None
        if advice.users != self._users:
            self.leader.line.clear()
            self.leader.leave_level()
            logger.info("Now %d users: %s.", advice.users, advice.why)
            self._users = advice.users
        return self._users, self._spawn_rate

    def _break_off(self, coordinator: Coordinator, why: str) -> None:
        super()._break_off(coordinator, why)
        self._stale = coordinator.advisor is not None and coordinator.advisor.asking

    def _give_up(self, error: AdvisorLostError) -> None:
        self.leader.line.clear()
        self.leader.ending.fail(f"The search cannot go on, because its advisor is lost ({error}).")
        self._end(drain_s=STOP_DRAIN_S)

    def _left_s(self) -> float:
        assert self._until is not None
        return max(0.0, self._until - time.monotonic())

    def _show(self, coordinator: Coordinator) -> None:
        assert self._advice is not None
        level = live_text(coordinator.level, level_s=None, left_s=self._left_s())
        self.leader.line.show(f"{self._advice.line} | {level}")
