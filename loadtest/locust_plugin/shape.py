"""The base class of all plans of users. Once a second, Locust asks the plan for the number of users. Knows
nothing of requests."""

import logging
import time
from abc import abstractmethod
from typing import ClassVar

from locust import LoadTestShape

from loadtest.locust_plugin.leader import STOP_DRAIN_S, Leader
from loadtest.run.coordinator import Coordinator, opening_lines
from loadtest.settings import Settings

logger = logging.getLogger(__name__)

FAST_SPAWN_RATE = 100.0
"""Users to start per second unless the user sets a rate; with more, Locust warns."""

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
            self._coordinator = self.leader.begin(self.scenario, check=self._check)
            return self._begin(self._coordinator) if self._coordinator is not None else None
        coordinator = self._coordinator
        if coordinator is None or coordinator is not self.leader.coordinator:
            return self._users, self._spawn_rate  # being stopped by somebody else: ask for nothing new
        self.leader.keep_level()
        self._show(coordinator)
        if self._until is not None and time.monotonic() >= self._until:
            logger.info("The time limit is reached.")
            self._end(drain_s=STOP_DRAIN_S)
            return None
        return self._go_on(coordinator)

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
