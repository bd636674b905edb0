"""The worker: the part of a process that runs users. It runs in the only process, or in one of Locust's
workers on this machine or another. Knows nothing of levels and their plan."""

import logging
import time
from collections.abc import Callable

import gevent
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.errors import InputError
from loadtest.locust_plugin.channel import Channel
from loadtest.locust_plugin.ending import Ending, leave_ctrl_c_to_master
from loadtest.locust_plugin.load import MixedUsers
from loadtest.locust_plugin.options import HiddenHost, LocustOptions
from loadtest.locust_plugin.statistics import tell_locust
from loadtest.run.generator import Generator
from loadtest.run.loop import LoopThread
from loadtest.run.messages import (
    ArrivalAssignments,
    CurrentLevel,
    LeaderTime,
    PromptNumbers,
    PromptNumbersWanted,
    RowReceipt,
    SessionBatch,
    SessionsWanted,
    StopAsking,
    StopMeasuring,
    WorkerRefused,
)

logger = logging.getLogger(__name__)

REPORT_S = 1.0
"""Seconds between two reports to the leader."""
SHIP_S = 0.25
"""Seconds after which a worker on another machine looks again for rows to send."""
DELIVERY_S = 15.0
"""Seconds without a delivery after which the leader no longer waits for the workers' rows."""
QUIT_S = 5.0
"""Seconds that a worker may take to deliver its rows when it is told to exit."""


class Worker:
    """Runs the load generator of this process's users, reports to the leader and delivers the rows. Its
    methods must be called from greenlets of the main thread."""

    def __init__(
        self,
        environment: Environment,
        *,
        channel: Channel,
        options: LocustOptions,
        host: HiddenHost,
        ending: Ending,
        loop: Callable[[], LoopThread],
    ) -> None:
        self.generator: Generator | None = None
        """The load generator of the run in progress; None between runs."""
        self._ended: list[Generator] = []
        """Load generators of runs that have ended, whose rows are still being delivered."""
        self._environment = environment
        self._channel = channel
        self._options = options
        self._host = host
        self._ending = ending
        self._loop = loop
        self._users = MixedUsers(environment)
        channel.on(CurrentLevel, self._take_level)
        channel.on(ArrivalAssignments, self._take_assignments)
        channel.on(PromptNumbers, self._take_prompts)
        channel.on(SessionBatch, self._take_sessions)
        channel.on(StopAsking, self._stop_asking)
        channel.on(StopMeasuring, self._stop_measuring)
        gevent.spawn(self._keep_reporting)
        if isinstance(environment.runner, WorkerRunner):
            self._follow_master()

    def _follow_master(self) -> None:
        self._channel.on(RowReceipt, self._take_receipt)
        self._channel.on(LeaderTime, self._take_leader_time)
        gevent.spawn(self._keep_shipping)
        if self._options.processes:
            leave_ctrl_c_to_master(within_s=DELIVERY_S + QUIT_S)
        self._environment.events.test_start.add_listener(self._on_test_start)

    def begin(self) -> None:
        """Creates the load generator from the leader's plan, and sends a first report to the leader. Raises
        InputError."""
        plan = self._options.read_plan()
        self._end_measuring()
        name = str(getattr(self._environment.runner, "worker_index", 0))
        self.generator = Generator(
            plan,
            worker=name,
            loop=self._loop(),
            host=self._host.for_plan(plan),
            private=self._options.private(),
            ask_for_prompts=lambda: self._channel.send(PromptNumbersWanted()),
            ask_for_sessions=lambda: self._channel.send(SessionsWanted()),
        )
        self._report()

    def quit(self) -> None:
        """Stops the load generator, because the process exits, and waits up to QUIT_S seconds until all rows
        are delivered. Rows that are not delivered stay in this worker's folder, and a warning names that
        folder."""
        self._end_measuring()
        until = time.monotonic() + QUIT_S
        while time.monotonic() < until and any(one.delivery.undelivered_bytes for one in self._ended):
            gevent.sleep(SHIP_S)
        for generator in self._ended:
            if generator.delivery.undelivered_bytes:
                logger.warning(
                    "The master did not take all rows of this worker. Copy them into the run folder (cp or "
                    "scp): cp %s/*-%s.jsonl %s/",
                    generator.folder,
                    generator.worker,
                    generator.plan.folder,
                )

    def _on_test_start(self, **_: object) -> None:
        try:
            self._users.know(self._options.read_plan().classes)
            self.begin()
        except InputError as error:
            self._ending.refuse(str(error))
            self._channel.send(WorkerRefused(reason=str(error)))

    def _keep_reporting(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self._report()

    def _generators(self) -> list[Generator]:
        """Returns the load generators that the leader still expects something of."""
        return [*self._ended, *([self.generator] if self.generator is not None else [])]

    def _report(self) -> None:
        for generator in self._generators():
            self._report_of(generator)

    def _report_of(self, generator: Generator, *, stopped: bool = False) -> None:
        report = generator.report(stopped=stopped)
        for record in generator.take_unattended():
            tell_locust(self._environment, record)
        self._channel.send(report)

    def _keep_shipping(self) -> None:
        while True:
            self._ship()
            gevent.sleep(SHIP_S)

    def _ship(self) -> None:
        for generator in self._generators():
            for batch in generator.delivery.next_batches():
                self._channel.send(batch)

    def _take_receipt(self, receipt: RowReceipt) -> None:
        for generator in self._generators():
            if generator.plan.run_id == receipt.run_id:
                generator.delivery.take(receipt)
        self._ship()

    def _take_leader_time(self, answer: LeaderTime) -> None:
        for generator in self._generators():
            generator.clock.take(answer)

    def _take_level(self, level: CurrentLevel) -> None:
        if self.generator is not None:
            self.generator.level_users = level.users

    def _take_assignments(self, message: ArrivalAssignments) -> None:
        if self.generator is not None:
            self.generator.arrivals.take_assignments(message)

    def _take_prompts(self, numbers: PromptNumbers) -> None:
        if self.generator is not None:
            self.generator.take_prompts(numbers)

    def _take_sessions(self, batch: SessionBatch) -> None:
        if self.generator is not None:
            self.generator.take_sessions(batch)

    def _stop_asking(self, _: StopAsking) -> None:
        if self.generator is not None:
            self.generator.stop_asking()
            self._report()

    def _stop_measuring(self, _: StopMeasuring) -> None:
        self._end_measuring()

    def _end_measuring(self) -> None:
        """Stops the load generator of the run in progress, if there is one. Its rows are delivered beside
        whatever begins next."""
        generator, self.generator = self.generator, None
        if generator is not None:
            self._ended.append(generator)
            generator.stop()
            gevent.spawn(self._report_when_delivered, generator)

    def _report_when_delivered(self, generator: Generator) -> None:
        while generator.delivery.undelivered_bytes:
            gevent.sleep(SHIP_S)
        self._report_of(generator, stopped=True)
        self._ended.remove(generator)
