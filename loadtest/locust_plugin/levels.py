"""Plans of users. Knows nothing of requests. The plans are:

- a given list of levels, one after the other;
- a sweep: each level has twice the users of the level before;
- one number of users until the test is stopped;
- an open loop: requests are sent at given times.
"""

import logging
import math
import time

from loadtest.clock import unix_now
from loadtest.errors import InputError
from loadtest.locust_plugin.shape import MAX_REPEATS, Shape, UsersAndSpawnRate
from loadtest.record import LevelQuestion, LevelVerdict
from loadtest.run.advisor import ROWS_S, Advisor, AdvisorLostError
from loadtest.run.coordinator import Coordinator
from loadtest.run.live.lateness import MUCH_TOO_LATE
from loadtest.run.live.level import LiveLevel
from loadtest.run.live.line import LATE_ADVICE, live_text
from loadtest.settings import RECORDED_ARRIVALS, Settings
from loadtest.workload.classes import ClassPlan

logger = logging.getLogger(__name__)

VERDICT_S = 15.0
"""Seconds that a verdict on a level may take; without one the plan goes on."""
CLARITY_S = 5.0
"""Seconds for which it may stay unclear whether failures at a level's end were the beginning of an absence:
users pause 1 s after a first failure, and 2 s after the next."""
CLOSING_S = 3.0
"""Seconds between two levels, in which the level before is judged and users start."""
ENOUGH_THINK_TIMES = 3.0
"""Think times that a level must hold after its settling time, so that a user asks about three times in it."""
SWEEP_MAX_USERS = 256
"""Largest level of a doubling sweep; a sweep that finds no wall ends there."""


class LevelShape(Shape):
    """Follows one of three plans:

    - hold each level for `level_s` seconds;
    - hold one number of users until the test is stopped;
    - run an open loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self._planned: list[int] = []
        self._position = 0
        """Position of the level under way in `_planned`."""
        self._held_until_told = False
        self._sweeping = False
        self._given_up: str | None = None
        """Why the plan cannot go on; None if it can."""
        self._closed_monotonic_s = 0.0
        self._late_levels = 0
        """Levels up to now, one after the other, in which this machine was late."""
        self._sound = False
        """Whether this machine generated the load of a level in time."""
        self._held_again = False
        """Whether the level under way is one that is held again, because it was not trusted."""

    def _check(self, settings: Settings) -> None:
        users_given = self.leader.options.users_flag_given
        if settings.levels and users_given:
            raise InputError("--levels and -u cannot be combined: both say how many users there are.")
        if settings.open_loop and users_given:
            raise InputError("-u cannot be combined with --arrivals or --trace: an open loop has no users.")
        if settings.settle_s >= settings.level_s:
            raise InputError("--settle-s must be shorter than --level-s, or nothing of a level is analysed.")
        if self.leader.options.given("budget_s"):
            raise InputError(
                "--budget-s limits a search (scenarios/find_capacity.py); limit a plan of levels with -t."
            )

    def _begin(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        self.leader.let_surplus_finish(coordinator.settings.request_timeout_s + 1)
        self._choose_levels(coordinator)
        time_limit_s = self.leader.options.run_time_s
        self._until = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._announce(coordinator, self._plan_text(coordinator, time_limit_s))
        if not (self._held_until_told or coordinator.settings.open_loop):
            if (warning := _short_levels(coordinator)) is not None:
                coordinator.warn(warning)
            coordinator.advisor = Advisor(coordinator.folder)
        self._held_again = self._sound = False
        self._late_levels = 0
        self._users, self._spawn_rate = self._planned[0], self._rate()
        return self._users, self._spawn_rate

    def _go_on(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        if coordinator.settings.open_loop:
            return self._arrive(coordinator)
        self._follow_web_page()
        if self._given_up is not None:
            self.leader.ending.fail(self._given_up)
            self._end(drain_s=coordinator.settings.request_timeout_s)
            return None
        if self._closing is not None:
            return self._close(coordinator, self._closing)
        if self._level_is_over(coordinator):
            self._begin_closing(coordinator)
        return self._users, self._spawn_rate

    def _begin_closing(self, coordinator: Coordinator) -> None:
        """Ends the level and asks the advisor whether it is trusted. The users go on meanwhile."""
        level = self._closing = coordinator.level
        assert level is not None
        self.leader.line.clear()
        self.leader.leave_level()
        self._closed_monotonic_s = time.monotonic()
        coordinator.info.workers = self.leader.reports.workers()
        coordinator.save()
        if coordinator.advisor is not None:
            question = LevelQuestion(start_unix_s=level.start_unix_s, end_unix_s=level.end_unix_s)
            coordinator.advisor.begin_asking(question, after_s=ROWS_S)

    def _close(self, coordinator: Coordinator, level: LiveLevel) -> UsersAndSpawnRate:
        """Waits until it is known whether the level counts. Then holds it again, or goes on to the next."""
        waited_s = time.monotonic() - self._closed_monotonic_s
        if waited_s < CLARITY_S and coordinator.absences.is_unclear(level.end_unix_s):
            return self._users, self._spawn_rate
        verdict = self._verdict(coordinator, level)
        if verdict is None and coordinator.advisor is not None and waited_s < VERDICT_S:
            return self._users, self._spawn_rate
        self._closing = None
        if verdict is not None and verdict.hold_again and not self._held_again:
            logger.info(
                "The level of %d users is not trusted (%s); it is held again.", level.users, verdict.why
            )
            self._held_again = True
            self.leader.begin_level(self._users)
            return self._users, self._spawn_rate
        if (trouble := self._lasting_trouble(level)) is not None:
            self._end_late(coordinator, trouble)
            return None
        self._held_again = False
        return self._next(coordinator, level)

    def _lasting_trouble(self, level: LiveLevel) -> str | None:
        """Returns why more users would be of no use: this machine was much too late also when the level was
        held again, or late in two levels, one after the other. None if they may be, and after the last level
        if there is one that was in time."""
        trouble = level.generator_trouble()
        self._late_levels = 0 if trouble is None else self._late_levels + 1
        self._sound = self._sound or trouble is None
        if self._sound and self._position + 1 == len(self._planned):
            return None
        if self._late_levels > 1:
            return trouble
        return level.generator_trouble(factor=MUCH_TOO_LATE) if self._held_again else None

    def _verdict(self, coordinator: Coordinator, level: LiveLevel) -> LevelVerdict | None:
        """Returns the advisor's verdict if it has come. Goes on without an advisor if that is lost: the
        analysis after the run says the same."""
        if coordinator.advisor is None:
            return None
        try:
            verdict = coordinator.advisor.take_verdict()
        except AdvisorLostError as error:
            logger.warning("Levels are not judged while the test runs: the advisor is lost (%s).", error)
            coordinator.advisor.close()
            coordinator.advisor = None
            return None
        is_asked_for = verdict is not None and verdict.start_unix_s == level.start_unix_s
        return verdict if is_asked_for else None

    def _pass_over(self, coordinator: Coordinator, why: str) -> None:
        if self._held_until_told:
            super()._pass_over(coordinator, why)
            self._repeats.clear()
        else:
            self._given_up = (
                f"The level of {self._users} users was held {MAX_REPEATS + 1} times, and each time {why}. "
                "The run ends here, because more users would hardly do better."
            )

    def _choose_levels(self, coordinator: Coordinator) -> None:
        levels = list(coordinator.settings.levels)
        asked = self.leader.options.users
        self._held_until_told = self._sweeping = False
        self._given_up = None
        if coordinator.settings.open_loop:
            levels = [self.leader.worker_count]  # one Locust user a worker sends what is due
        elif not levels and asked is not None:
            levels, self._held_until_told = [asked], True
        elif not levels:
            self._sweeping = True
            levels = [2**i for i in range(SWEEP_MAX_USERS.bit_length())]
        self._planned, self._position = levels, 0

    def _plan_text(self, coordinator: Coordinator, time_limit_s: float | None) -> str:
        level_s = coordinator.settings.level_s
        if coordinator.settings.open_loop:
            return _arrivals_text(coordinator, time_limit_s)
        end = f", at most {time_limit_s:.0f} s" if time_limit_s is not None else ""
        if self._held_until_told:
            return f"{self._planned[0]} users{end or ' until stopped'}"
        listing = ", ".join(map(str, self._planned))
        minutes = len(self._planned) * (level_s + CLOSING_S) / 60
        text = f"{listing} users, {level_s:g} s each: about {minutes:.1f} min{end}"
        return f"{text}, or until the first level past a wall" if self._sweeping else text

    def _follow_web_page(self) -> None:
        """Leaves the level if the web page's form has a new number of users, and takes that number."""
        asked = self.leader.options.users
        if self._held_until_told and not self.leader.options.headless and asked and asked != self._users:
            self.leader.leave_level()
            self._users, self._spawn_rate = asked, self._rate()

    def _level_is_over(self, coordinator: Coordinator) -> bool:
        if self._held_until_told or coordinator.level is None:
            return False
        return unix_now() - coordinator.level.start_unix_s >= coordinator.settings.level_s

    def _next(self, coordinator: Coordinator, level: LiveLevel) -> UsersAndSpawnRate:
        wall = level.past_wall() if self._sweeping else None
        stop = wall or level.far_past_wall()
        if stop and self._position + 1 < len(self._planned):
            logger.info("The sweep stops at %d users: %s.", level.users, stop)
        if stop or self._position + 1 == len(self._planned):
            self._end(drain_s=coordinator.settings.request_timeout_s)
            return None
        self._position += 1
        users = self._planned[self._position]
        if users == self._users:
            self.leader.begin_level(users)  # nothing changes for Locust, which would not tell of it
        self._users = users
        return self._users, self._spawn_rate

    def _end_late(self, coordinator: Coordinator, trouble: str) -> None:
        """Ends the run, because this machine could not generate the load even when the level was held again,
        and more users would be more load."""
        self.leader.ending.fail(
            f"The run ends at {self._users} users, because {trouble}: its times are not the server's. "
            f"Results with fewer users stand; for more, {LATE_ADVICE}."
        )
        self._end(drain_s=coordinator.settings.request_timeout_s)

    def _arrive(self, coordinator: Coordinator) -> UsersAndSpawnRate:
        self._users = self.leader.worker_count
        if self.leader.reports.arriving or self.leader.handing_out:
            return self._users, self._spawn_rate
        self._end(drain_s=coordinator.settings.request_timeout_s)
        return None

    def _show(self, coordinator: Coordinator) -> None:
        if self._closing is not None:
            self.leader.line.show(f"is the level of {self._closing.users} users to be trusted? ...")
            return
        level_s = None if self._held_until_told else coordinator.settings.level_s
        level_s = coordinator.arrivals_s if coordinator.settings.open_loop else level_s
        self.leader.line.show(live_text(coordinator.level, level_s=level_s, left_s=self._left_s(coordinator)))

    def _left_s(self, coordinator: Coordinator) -> float | None:
        if self._held_until_told or self._sweeping:
            return None if self._until is None else self._until - time.monotonic()
        if coordinator.settings.open_loop:
            return (
                coordinator.arrivals_s - (unix_now() - coordinator.level.start_unix_s)
                if coordinator.level
                else None
            )
        held = unix_now() - coordinator.level.start_unix_s if coordinator.level else 0.0
        return (len(self._planned) - self._position) * coordinator.settings.level_s - held


def _short_levels(coordinator: Coordinator) -> str | None:
    """Returns a warning if a level hardly holds one think time of each user; None if it holds enough."""
    settings = coordinator.settings
    if coordinator.sessions is not None:
        pause_s = coordinator.sessions.mean_pause_s
        pauses_s = settings.settle_s + ENOUGH_THINK_TIMES * pause_s
        if settings.level_s >= pauses_s:
            return None
        return (
            f"Levels of {settings.level_s:g} s are short for recorded pauses of {pause_s:.0f} s (mean): many "
            f"users ask only once in a level. Use --level-s {math.ceil(pauses_s)} or more, or an open loop "
            "(--arrivals recorded)."
        )
    slowest = max(map(ClassPlan.of, settings.classes), key=lambda plan: plan.think_s.mean)
    think_s = slowest.think_s.mean
    enough_s = settings.settle_s + ENOUGH_THINK_TIMES * think_s
    if not think_s or settings.level_s >= enough_s:
        return None
    whose = "" if slowest.name is None else f" of class '{slowest.name}'"
    return (
        f"Levels of {settings.level_s:g} s are short for a think time of {think_s:g} s (mean): many users"
        f"{whose} ask only once in a level, or never. Use --level-s {math.ceil(enough_s)} or more."
    )


def _arrivals_text(coordinator: Coordinator, time_limit_s: float | None) -> str:
    settings = coordinator.settings
    process = settings.arrivals or f"trace {settings.trace} at {settings.trace_speed:g} times its speed"
    what = "requests"
    if settings.sessions is not None:
        what, speed = "sessions", settings.trace_speed
        process += f" at {speed:g} times their speed" if settings.arrivals == RECORDED_ARRIVALS else ""
    end = f", at most {time_limit_s:.0f} s" if time_limit_s is not None else ""
    minutes = coordinator.arrivals_s / 60
    return f"open loop, {process}: {coordinator.arrivals_count:,} {what} in {minutes:.1f} min{end}"
