"""The load of one run: which level counts and since when, and which worker sends which arrivals. Knows
nothing of how a run begins or ends."""

import time

from locust.runners import Runner

from loadtest.locust_plugin.channel import Channel
from loadtest.locust_plugin.reports import WorkerReports, worker_names
from loadtest.run.coordinator import Coordinator
from loadtest.run.messages import ArrivalAssignments, CurrentLevel
from loadtest.run.open_loop import LOOKAHEAD_S
from loadtest.workload.arrivals import WorkerAssignment

FIRST_ARRIVALS_S = 0.5
"""Time for the workers to learn their arrivals before the first one is due."""


class LevelKeeper:
    """Begins, keeps and ends the levels of a run, and tells the workers whose rows belong to which."""

    def __init__(
        self, coordinator: Coordinator, *, runner: Runner, channel: Channel, reports: WorkerReports
    ) -> None:
        self._coordinator = coordinator
        self._runner = runner
        self._channel = channel
        self._reports = reports
        self._workers: tuple[str, ...] = ()
        """The workers that held the level's users when it began."""
        self._awaited: int | None = None

    def begin(self, users: int) -> None:
        """Begins a level, all of whose users have started: rows carry its number from now on."""
        self._awaited = None
        self._workers = worker_names(self._runner)
        self._coordinator.begin_level(users)
        self._channel.send(CurrentLevel(users=users))

    def begin_when_others_have_ended(self, users: int) -> None:
        """Begins a level of fewer users once the streams of those that stop have ended."""
        self._awaited = users

    def keep(self) -> None:
        """Lets the level last until now; where a worker is lost, until it was last heard of, because nobody
        knows when its users went."""
        if self._awaited is not None and self._runner.user_count <= self._awaited:
            self.begin(self._awaited)
        self._coordinator.keep_level(self._reports.heard_until(self._workers))

    def end(self) -> None:
        """Ends the level; new rows carry its number until `leave` or `begin`."""
        self.keep()
        self._coordinator.end_level()

    def leave(self) -> None:
        """Ends the level; until the next one begins, rows belong to none."""
        self._awaited = None
        self.end()
        self._channel.send(CurrentLevel(users=None))


class ArrivalSharing:
    """Tells the workers of an open loop who sends what: at the start, and again when workers have come or
    gone."""

    def __init__(self, coordinator: Coordinator, *, runner: Runner, channel: Channel) -> None:
        self._coordinator = coordinator
        self._runner = runner
        self._channel = channel
        self._assignments: list[WorkerAssignment] = []

    def share(self) -> None:
        now = time.time()
        if not self._assignments:
            self._coordinator.begin_arrivals(now + FIRST_ARRIVALS_S)
        assert self._coordinator.info.arrivals is not None
        start_unix_s = self._coordinator.info.arrivals.start_unix_s
        workers = worker_names(self._runner)
        if not self._assignments or workers != self._assignments[-1].workers:
            from_s = now - start_unix_s + LOOKAHEAD_S + FIRST_ARRIVALS_S if self._assignments else 0.0
            self._assignments.append(WorkerAssignment(from_s, workers))
        self._channel.send(ArrivalAssignments(start_unix_s=start_unix_s, assignments=self._assignments))
