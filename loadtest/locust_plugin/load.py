"""The load of one run: its current level, the classes of its users, and which worker sends which arrivals
(requests of an open loop). Knows nothing of how a run begins or ends."""

import types
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
from locust import User
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.runners import MasterRunner, Runner

from loadtest.clock import unix_now
from loadtest.errors import InputError
from loadtest.locust_plugin.channel import Channel
from loadtest.locust_plugin.reports import WorkerReports, worker_ids, worker_names
from loadtest.record import UserClass
from loadtest.run.coordinator import Coordinator
from loadtest.run.messages import ArrivalAssignments, CurrentLevel, PromptNumbers, SessionBatch
from loadtest.run.open_loop import LOOKAHEAD_S
from loadtest.workload.arrivals import WorkerAssignment
from loadtest.workload.classes import mix_order

FIRST_ARRIVALS_S = 0.5
"""Seconds between the message that assigns arrivals to workers and the first of these arrivals."""


FIRST_SESSIONS_S = 1.5
"""Seconds between the start of an open loop of recorded sessions and the first of them: workers look for
what is due twice a second."""
SESSIONS_AHEAD_S = 2 * LOOKAHEAD_S
"""Seconds before a session is due at which a worker gets it."""
SESSIONS_LOOK_S = 0.5
"""Seconds between two looks which sessions are due."""
BEGUN_KNOWN_S = 3.0
"""Seconds after the last session is due in which all workers have surely reported that they play it."""
PROMPTS_AT_ONCE = 4
"""Numbers of own prompts, or recorded sessions, that a worker gets at once: so many may wait unused in a
worker with few users."""
ALL_PROMPTS_AT_ONCE = 64
"""The same where one process does everything, and no other could want them."""


class LevelKeeper:
    """Begins, extends and ends the levels of a run, and tells the workers which level new rows belong to."""

    def __init__(
        self, coordinator: Coordinator, *, runner: Runner, channel: Channel, reports: WorkerReports
    ) -> None:
        self._coordinator = coordinator
        self._runner = runner
        self._channel = channel
        self._reports = reports
        self._workers: tuple[str, ...] = ()
        """Names of the workers that ran the level's users when it began."""
        self._awaited: int | None = None

    def begin(self, users: int) -> None:
        """Begins a level; all of its users must have started. From now on, new rows carry its number of
        users."""
        self._awaited = None
        self._workers = worker_names(self._runner)
        self._coordinator.begin_level(users)
        self._channel.send(CurrentLevel(users=users))

    def begin_when_others_have_ended(self, users: int) -> None:
        """Plans a level of `users`, fewer than before: `keep` begins it as soon as the surplus users have
        ended their streams."""
        self._awaited = users

    def keep(self) -> None:
        """First begins the level that `begin_when_others_have_ended` has planned, if the surplus users have
        ended. Then moves the end of the current level to now. If a worker is silent, the level ends at that
        worker's last report, because nobody knows when its users stopped."""
        if self._awaited is not None and self._runner.user_count <= self._awaited:
            self.begin(self._awaited)
        self._coordinator.keep_level(self._reports.heard_until(self._workers))

    def end(self) -> None:
        """Ends the level. New rows still carry its number of users, until `leave` or `begin` is called."""
        self.keep()
        self._coordinator.end_level()

    def leave(self) -> None:
        """Ends the level. New rows belong to no level until the next level begins."""
        self._awaited = None
        self.end()
        self._channel.send(CurrentLevel(users=None))


class PromptSharing:
    """Gives out the numbers of the person's own prompts: each number to one worker, the lowest first."""

    def __init__(self, *, runner: Runner, channel: Channel) -> None:
        self._runner = runner
        self._channel = channel
        self._next = 0

    def give(self, worker_id: str) -> None:
        """Sends the next few numbers to a worker that asks. worker_id: the sender of its message."""
        count = PROMPTS_AT_ONCE if isinstance(self._runner, MasterRunner) else ALL_PROMPTS_AT_ONCE
        self._channel.send(PromptNumbers(first=self._next, count=count), to=worker_id)
        self._next += count


class SessionSharing:
    """Gives out recorded sessions, each to one worker: to those that ask in a closed loop, and shortly before
    they are due in an open one."""

    def __init__(self, coordinator: Coordinator, *, runner: Runner, channel: Channel) -> None:
        self._coordinator = coordinator
        self._runner = runner
        self._channel = channel
        self._start_unix_s: float | None = None
        self._ended = False

    @property
    def handing_out(self) -> bool:
        """Open loop: whether some sessions have not begun, as far as the leader knows."""
        start_unix_s, coordinator = self._start_unix_s, self._coordinator
        if coordinator.sessions is None or not coordinator.settings.open_loop:
            return False
        return start_unix_s is None or unix_now() < start_unix_s + coordinator.arrivals_s + BEGUN_KNOWN_S

    def give(self, worker_id: str) -> None:
        """Sends the next few sessions to a worker that asks. worker_id: the sender of its message."""
        if self._coordinator.sessions is not None:
            sessions = [self._coordinator.sessions.take() for _ in range(PROMPTS_AT_ONCE)]
            self._coordinator.note_sessions_again()
            self._channel.send(SessionBatch(sessions=sessions), to=worker_id)

    def begin(self) -> None:
        """Begins an open loop, if it has not begun: its sessions are due from now on."""
        if self._start_unix_s is None:
            self._start_unix_s = unix_now() + FIRST_SESSIONS_S
            self._coordinator.begin_arrivals(self._start_unix_s)
            gevent.spawn(self._keep_sending, self._start_unix_s)

    def end(self) -> None:
        self._ended = True

    def _keep_sending(self, start_unix_s: float) -> None:
        assert self._coordinator.sessions is not None
        while not self._ended and self.handing_out:
            due = self._coordinator.sessions.take_due(unix_now() - start_unix_s + SESSIONS_AHEAD_S)
            self._coordinator.note_sessions_again()
            workers = worker_ids(self._runner)
            for index, worker in enumerate(workers):
                if mine := due[index :: len(workers)]:
                    batch = SessionBatch(sessions=mine, start_unix_s=start_unix_s)
                    self._channel.send(batch, to=worker)
            gevent.sleep(SESSIONS_LOOK_S)


class ArrivalSharing:
    """Tells the workers of an open loop which arrivals each of them sends. Tells them at the start, and again
    when workers have joined or left."""

    def __init__(self, coordinator: Coordinator, *, runner: Runner, channel: Channel) -> None:
        self._coordinator = coordinator
        self._runner = runner
        self._channel = channel
        self._assignments: list[WorkerAssignment] = []

    def share(self) -> None:
        now = unix_now()
        if not self._assignments:
            self._coordinator.begin_arrivals(now + FIRST_ARRIVALS_S)
        assert self._coordinator.info.arrivals is not None
        start_unix_s = self._coordinator.info.arrivals.start_unix_s
        workers = worker_names(self._runner)
        if not self._assignments or workers != self._assignments[-1].workers:
            from_s = now - start_unix_s + LOOKAHEAD_S + FIRST_ARRIVALS_S if self._assignments else 0.0
            self._assignments.append(WorkerAssignment(from_s, workers))
        self._channel.send(ArrivalAssignments(start_unix_s=start_unix_s, assignments=self._assignments))


class _MixDispatcher(UsersDispatcher):
    """Starts users in the order of `mix_order` and stops the last one first, so that every number of users
    has the same classes whatever the numbers before were. Locust's own order goes on where it was when users
    are started again after others were stopped."""

    def __init__(self, worker_nodes: Any, user_classes: Sequence[type[User]]) -> None:
        self._mix = list(user_classes)
        super().__init__(worker_nodes, list(user_classes))

    def new_dispatch(
        self, target_user_count: int, spawn_rate: float, user_classes: list[type[User]] | None = None
    ) -> None:
        super().new_dispatch(target_user_count, spawn_rate, user_classes)
        self._user_generator = self._user_gen()
        for _ in range(self._current_user_count):
            next(self._user_generator)

    def _user_gen(self) -> Iterator[str]:
        for index in mix_order([user.weight for user in self._mix]):
            yield self._mix[index].__name__


class MixedUsers:
    """Makes the classes of a workload file known to Locust, as subclasses of the locustfile's users."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._own = list(environment.user_classes)

    def use(self, classes: Sequence[UserClass]) -> None:
        """Lets Locust start users of these classes by their weights; without any that has a name, the users
        of the locustfile. Raises InputError if the locustfile has several kinds of users."""
        made = self._made(classes)
        self._environment.user_classes = made or self._own
        self._environment.dispatcher_class = _MixDispatcher if made else UsersDispatcher

    def know(self, classes: Sequence[UserClass]) -> None:
        """Lets a worker of Locust start users of these classes, and those of the locustfile, as the master
        says."""
        self._environment.user_classes = [*self._own, *self._made(classes)]

    def _made(self, classes: Sequence[UserClass]) -> list[type[User]]:
        named = [each for each in classes if each.name]
        if named and len(self._own) != 1:
            kinds = ", ".join(user.__name__ for user in self._own)
            raise InputError(
                f"The locustfile has several kinds of users ({kinds}): with a workload file, leave one, and "
                "its users belong to the classes of the file."
            )
        return [self._subclass(each) for each in named]

    def _subclass(self, user_class: UserClass) -> type[User]:
        own = self._own[0]
        values = {"class_name": user_class.name, "weight": user_class.weight, "fixed_count": 0}
        return types.new_class(user_class.name, (own,), exec_body=lambda body: body.update(values))
