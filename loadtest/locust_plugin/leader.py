"""The leader: the part of a process that leads runs. It runs in Locust's master, or in the only process.
Knows no plan of users: a shape (Locust's name for such a plan) says which level comes next."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, Runner

from loadtest.clock import unix_now
from loadtest.errors import InputError
from loadtest.locust_plugin.channel import Channel
from loadtest.locust_plugin.ending import Ending, take_sigterm_as_ctrl_c
from loadtest.locust_plugin.load import (
    ArrivalSharing,
    LevelKeeper,
    MixedUsers,
    PromptSharing,
    SessionSharing,
)
from loadtest.locust_plugin.options import HiddenHost, LocustOptions
from loadtest.locust_plugin.reports import WorkerReports, worker_names
from loadtest.locust_plugin.worker import DELIVERY_S, Worker
from loadtest.run.coordinator import Coordinator
from loadtest.run.live.line import LiveLine
from loadtest.run.loop import LoopThread
from loadtest.run.messages import (
    LeaderTime,
    PromptNumbersWanted,
    RowBatch,
    SessionsWanted,
    StopAsking,
    StopMeasuring,
    WorkerRefused,
    WorkerReport,
)
from loadtest.run.shipping import Receiver
from loadtest.settings import Settings

logger = logging.getLogger(__name__)

STOP_DRAIN_S = 10.0
"""Seconds that streams may take to finish after a time limit or the web page's stop button."""


class _LedRun(NamedTuple):
    coordinator: Coordinator
    levels: LevelKeeper
    arrivals: ArrivalSharing
    prompts: PromptSharing
    sessions: SessionSharing


class Leader:
    """Begins and ends runs, and changes the level when the shape asks. Its methods must be called from
    greenlets of the main thread."""

    def __init__(
        self,
        environment: Environment,
        *,
        channel: Channel,
        options: LocustOptions,
        host: HiddenHost,
        ending: Ending,
        loop: Callable[[], LoopThread],
        own_worker: Worker | None,
    ) -> None:
        """Registers for Locust's events and for the workers' messages. own_worker: the worker in this
        process, if one process does everything; None in Locust's master."""
        assert environment.runner is not None
        self.options = options
        self.ending = ending
        self.line = LiveLine()
        self.reports = WorkerReports()
        self._environment = environment
        self._users = MixedUsers(environment)
        self._runner: Runner = environment.runner
        self._channel = channel
        self._host = host
        self._loop = loop
        self._own_worker = own_worker
        self._run: _LedRun | None = None
        self._unfinished: Coordinator | None = None
        """The coordinator of a run that is being ended, or whose end was interrupted; else None."""
        self._receivers: dict[str, Receiver] = {}
        """What takes the rows of each run; rows may come after the run's end, even during the next run."""
        self._complete = False
        self._listen()

    def _listen(self) -> None:
        self._channel.on_from(WorkerReport, self._take_report)
        self._channel.on(WorkerRefused, self._take_refusal)
        self._channel.on_from(PromptNumbersWanted, self._give_prompts)
        self._channel.on_from(SessionsWanted, self._give_sessions)
        self._environment.events.spawning_complete.add_listener(self._on_spawning_complete)
        self._environment.events.test_stopping.add_listener(self._on_test_stopping)
        if self.options.headless:
            take_sigterm_as_ctrl_c()
        if isinstance(self._runner, MasterRunner):
            self.options.rebalance_users()
            self._channel.on_from(RowBatch, self._take_rows)
            self._environment.events.worker_connect.add_listener(self._on_worker_connect)

    @property
    def coordinator(self) -> Coordinator | None:
        """The coordinator of the run in progress; None between runs."""
        return None if self._run is None else self._run.coordinator

    @property
    def handing_out(self) -> bool:
        """Open loop of recorded sessions: whether some have not begun."""
        return self._run is not None and self._run.sessions.handing_out

    @property
    def worker_count(self) -> int:
        """Number of processes that run users, at least 1."""
        return max(1, len(worker_names(self._runner)))

    def begin(self, scenario: str, *, check: Callable[[Settings], None]) -> Coordinator | None:
        """Reads the settings, inspects the server, opens the run and returns its coordinator. `check` gets
        the settings and raises InputError if they do not fit. On any InputError, reports what is wrong, sets
        the exit code and returns None."""
        self._await_earlier_end()
        self._complete = False
        self.reports.clear()
        try:
            self._host.hide()
            logger.info("Inspecting the server; its first answer may take minutes while it compiles ...")
            settings = self.options.settings()
            check(settings)
            self._users.use([] if settings.open_loop else settings.classes)
            coordinator = Coordinator(
                host=self._host.address, settings=settings, scenario=scenario, loop=self._loop()
            )
            levels = LevelKeeper(
                coordinator, runner=self._runner, channel=self._channel, reports=self.reports
            )
            arrivals = ArrivalSharing(coordinator, runner=self._runner, channel=self._channel)
            prompts = PromptSharing(runner=self._runner, channel=self._channel)
            sessions = SessionSharing(coordinator, runner=self._runner, channel=self._channel)
            self._run = _LedRun(coordinator, levels, arrivals, prompts, sessions)
            self._receivers[coordinator.plan.run_id] = coordinator.receiver
            self.options.send_plan(coordinator.plan)
            if self._own_worker is not None:
                self._own_worker.begin()
        except InputError as error:
            self.ending.refuse(str(error))
            return None
        return coordinator

    def let_surplus_finish(self, seconds: float) -> None:
        """Lets each user that Locust stops finish its stream, for at most `seconds`. If --stop-timeout is
        given, that time holds instead."""
        if not self._environment.stop_timeout:
            self._environment.stop_timeout = seconds

    def begin_level(self, users: int) -> None:
        if self._run is not None:
            self._run.levels.begin(users)

    def keep_level(self) -> None:
        if self._run is not None:
            self._run.levels.keep()

    def leave_level(self) -> None:
        if self._run is not None:
            self._run.levels.leave()

    def end(self, *, drain_s: float) -> None:
        """Ends the run: lets streams finish for at most `drain_s` seconds, cancels the rest, waits for the
        workers' rows and completes the run folder. If a Ctrl-C interrupts this call, the next call completes
        the work."""
        if self._run is not None:
            self._run.levels.end()
            self._run.sessions.end()
        coordinator, self._run = self.coordinator or self._unfinished, None
        if coordinator is None:
            return
        self._unfinished = coordinator
        self.line.clear()
        self._channel.send(StopAsking())
        self._wait(drain_s, lambda report: report.in_flight == 0, "streams to end")
        self._channel.send(StopMeasuring())
        self._wait(DELIVERY_S, lambda report: report.stopped, "workers to deliver their rows")
        for warning in self.reports.warnings(processes=self.options.processes):
            coordinator.warn(warning)
        _conclude_search(coordinator, patiently=drain_s > 0)
        coordinator.finish(
            workers=self.reports.workers(),
            clipped=self.reports.clipped,
            prompts_used=self.reports.prompts_used,
            sessions_cut=self.reports.sessions_cut,
        )
        self._unfinished = None
        self._complete = True
        losses = self.reports.losses()
        coordinator.note_shortfall(losses or coordinator.shortfall())
        if losses is not None:
            self.ending.fall_short(losses)
        if not self.ending.code and (shortfall := coordinator.shortfall()) is not None:
            self.ending.fall_short(shortfall)
        folder = coordinator.folder
        logger.info("The run is in %s; next: python -m analysis.capacity %s", folder, folder.parent)

    def quit(self) -> None:
        """Ends the run in progress, if there is one, because the process exits. Sets the exit code if the
        plan was cut short."""
        if self._run is not None or (self.options.headless and not self._complete):
            self.ending.interrupt()
        if self._shape_is_ending():
            self._end_in_its_place()
        self.end(drain_s=0)

    def _wait(self, seconds: float, ready: Callable[[WorkerReport], bool], what: str) -> None:
        """Waits until `ready` is true for the last report of every worker that is not lost. Gives up after
        `seconds` in which no rows were delivered."""
        began, undelivered = time.monotonic(), self.reports.undelivered_bytes
        while not all(ready(report) for report in self.reports.audible()):
            if self.reports.undelivered_bytes < undelivered:
                began, undelivered = time.monotonic(), self.reports.undelivered_bytes
            if time.monotonic() - began >= seconds:
                return
            self.line.show(f"waiting for {what} ...")
            gevent.sleep(0.1)

    def _take_report(self, report: WorkerReport, sender: str) -> None:
        if not report.shares_disk:
            answer = LeaderTime(asked_unix_s=report.unix_s, leader_unix_s=unix_now())
            self._channel.send(answer, to=sender)
        coordinator = self.coordinator or self._unfinished
        if coordinator is not None and report.run_id == coordinator.plan.run_id:
            self.reports.take(report)
            coordinator.take_report(report)

    def _give_prompts(self, _: PromptNumbersWanted, sender: str) -> None:
        if self._run is not None:
            self._run.prompts.give(sender)

    def _give_sessions(self, _: SessionsWanted, sender: str) -> None:
        if self._run is not None:
            self._run.sessions.give(sender)

    def _take_refusal(self, refusal: WorkerRefused) -> None:
        """Ends the test, because a worker cannot take part. The test would have fewer users than it states,
        and its results would mislead."""
        self.ending.refuse(f"A worker cannot take part: {refusal.reason}")
        gevent.spawn(self._runner.quit if self.options.headless else self._runner.stop)

    def _take_rows(self, batch: RowBatch, sender: str) -> None:
        receiver = self._receivers.get(batch.run_id)
        if receiver is not None:
            self._channel.send(receiver.take(batch), to=sender)

    def _on_spawning_complete(self, user_count: int, **_: object) -> None:
        if self._run is None or not user_count:
            return
        settings = self._run.coordinator.settings
        if settings.open_loop and settings.sessions is not None:
            self._run.sessions.begin()
        elif settings.open_loop:
            self._run.arrivals.share()
        elif self._runner.user_count > user_count:
            self._run.levels.begin_when_others_have_ended(user_count)
        else:
            self._run.levels.begin(user_count)

    def _on_worker_connect(self, **_: object) -> None:
        """Leaves the level, because a new worker has joined and Locust moves users between workers. The level
        begins anew after the move."""
        if self._run is not None and not self._run.coordinator.settings.open_loop:
            self._run.levels.leave()

    def _on_test_stopping(self, **_: object) -> None:
        """Ends the run when Ctrl-C, SIGTERM or the web page's stop button has stopped the test."""
        if self._shape_is_ending():
            self._end_in_its_place()
        if self._run is None:
            return
        if self.options.headless:
            self.ending.interrupt()
        self.end(drain_s=0 if self.options.headless else STOP_DRAIN_S)

    def _await_earlier_end(self) -> None:
        """Waits until the run before has ended, if the web page has started the next one meanwhile."""
        until = time.monotonic() + STOP_DRAIN_S + DELIVERY_S
        while self._unfinished is not None and time.monotonic() < until:
            gevent.sleep(0.1)

    def _shape_is_ending(self) -> bool:
        """Whether a run's end has begun in another greenlet and is not complete. That greenlet is still
        inside `end`, or was killed there."""
        return self._unfinished is not None and self._runner.shape_greenlet is not gevent.getcurrent()

    def _end_in_its_place(self) -> None:
        """Kills the shape's greenlet, which is waiting inside `end`, and ends the run at once, without
        waiting for streams."""
        if self.options.headless:
            self.ending.interrupt()
        if self._runner.shape_greenlet is not None:
            self._runner.shape_greenlet.kill()
        self.end(drain_s=0)


def _conclude_search(coordinator: Coordinator, *, patiently: bool) -> None:
    """Ends the process of the run's advisor. If `patiently` and the run is a search, first waits for its last
    answer and logs that answer. Does nothing if there is no advisor."""
    advisor = coordinator.advisor
    if advisor is None:
        return
    if patiently and advisor.latest is not None and (advice := advisor.conclude()) is not None:
        logger.info("The answer: %s.", advice.line)
    advisor.close()
