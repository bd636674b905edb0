"""Locust's events -> Lead and Meter: who leads, who measures, and how a run ends without losing a row.

One Control a process. The leader (the only process, or the master) has a Lead; whoever runs users has a
Meter. They talk over Locust's own messages, which LocalRunner delivers to itself.
"""

import logging
import time
from argparse import ArgumentParser
from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.lead import Lead, LiveLine, opening
from loadtest.live import LiveRow
from loadtest.loop import LoopThread
from loadtest.meter import Meter, Plan
from loadtest.record import WorkerInfo
from loadtest.settings import InputError, Settings, add_flags, resolve
from loadtest.target import split_credentials

logger = logging.getLogger(__name__)

REPORT_S = 1.0
"""How often a measuring process tells the leader what it has."""
DELIVERY_S = 15.0
"""How long the leader waits for workers to say that their rows are on the disk."""
STOP_DRAIN_S = 10.0
"""How long streams may finish after a time limit or the web page's stop button."""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_PLAN = "seatcount_plan"  # travels with Locust's parsed options in each spawn message


class Control:
    """One process's part in load tests, from Locust's start to its exit."""

    def __init__(self, environment: Environment) -> None:
        assert environment.runner is not None
        assert environment.parsed_options is not None
        self.environment = environment
        self.runner = environment.runner
        self.options = environment.parsed_options
        self.headless = bool(self.options.headless)
        self.users_given: int | None = self.options.num_users
        self.spawn_rate_given: float | None = self.options.spawn_rate
        self.lead: Lead | None = None
        self.meter: Meter | None = None
        self.line = LiveLine()
        self._loop: LoopThread | None = None
        self._host = environment.host
        self._exit_code = 0
        self._complete = False
        self._reports: dict[str, dict[str, Any]] = {}
        self._hide_credentials()
        self._register()

    @property
    def loop(self) -> LoopThread:
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop

    # ---- the leader ----

    def begin(self, scenario: str) -> Lead | None:
        """Reads the settings, asks the server and opens the run. On bad input says one sentence, notes the
        exit code and returns None."""
        self._complete = False
        self._reports.clear()
        try:
            self._hide_credentials()
            settings = self._resolve()
            self.lead = Lead(host=self._host, settings=settings, scenario=scenario, loop=self.loop)
            setattr(self.options, _PLAN, self.lead.plan.write())
            if isinstance(self.runner, LocalRunner):
                self._begin_measuring()
        except InputError as error:
            self._refuse(str(error))
            return None
        if not self.environment.stop_timeout:
            self.environment.stop_timeout = settings.request_timeout_s + 1
        return self.lead

    def _resolve(self) -> Settings:
        settings = resolve(vars(self.options))
        if settings.levels and self.headless and self.users_given is not None:
            raise InputError("--levels and -u exclude each other: both say how many users there are.")
        return settings

    def announce(self, plan: str) -> None:
        assert self.lead is not None
        for text in opening(self.lead, plan=plan):
            logger.info(text)

    def set_level(self, users: int | None) -> None:
        """Tells everyone who measures how many users the level has; None between levels."""
        if self.lead is not None and users is None:
            self.lead.end_level()
        self.runner.send_message("seatcount_level", {"users": users})

    def end(self, *, drain_s: float) -> None:
        """Lets streams finish for `drain_s`, cancels the rest, waits until every row is delivered and
        completes the run folder."""
        lead, self.lead = self.lead, None
        if lead is None:
            return
        lead.end_level()
        self.line.clear()
        self.runner.send_message("seatcount_close", None)
        self._wait(drain_s, lambda report: report["in_flight"] == 0, "streams to end")
        self.runner.send_message("seatcount_stop", None)
        if not self._wait(DELIVERY_S, lambda report: report["stopped"], "workers to deliver their rows"):
            lead.warn("Not every worker said that its rows are delivered: some may be missing.")
        lead.finish(
            workers=[WorkerInfo(name=name) for name in sorted(self._reports)],
            clipped=sum(report["clipped"] for report in self._reports.values()),
        )
        self._complete = True
        logger.info("The run is in %s; next: python -m analysis.capacity %s", lead.folder, lead.folder.parent)

    def _wait(self, seconds: float, ready: Any, what: str) -> bool:
        until = time.monotonic() + seconds
        while True:
            if all(ready(report) for report in self._reports.values()):
                return True
            if time.monotonic() >= until:
                return False
            self.line.show(f"waiting for {what} ...")
            gevent.sleep(0.1)

    def _refuse(self, sentence: str) -> None:
        logger.error(sentence)
        self._exit_code = EXIT_BAD_INPUT
        self.runner.log_exception("local", sentence, "")  # shown on the web page

    # ---- whoever runs users ----

    def _begin_measuring(self) -> None:
        plan = Plan.read(getattr(self.options, _PLAN))
        if self.meter is not None:
            self.meter.stop()
        own = split_credentials(self._host or "")[0].rstrip("/").removesuffix("/v1") == plan.host
        host = self._host if own and self._host else plan.host
        index = getattr(self.runner, "worker_index", 0)
        self.meter = Meter(plan, worker=str(index), loop=self.loop, host=host)
        self._report()

    def _report(self, *, stopped: bool = False) -> None:
        meter = self.meter
        if meter is None:
            return
        report = {
            "worker": meter.worker,
            "in_flight": meter.in_flight,
            "clipped": meter.clipped,
            "stopped": stopped,
            "live": meter.take_live(),
        }
        self.runner.send_message("seatcount_report", report)

    def _keep_reporting(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self._report()

    # ---- Locust's events and messages ----

    def _register(self) -> None:
        measures = isinstance(self.runner, LocalRunner | WorkerRunner)
        if measures:
            self.runner.register_message("seatcount_level", self._on_level)
            self.runner.register_message("seatcount_close", self._on_close)
            self.runner.register_message("seatcount_stop", self._on_stop)
            gevent.spawn(self._keep_reporting)
        if isinstance(self.runner, LocalRunner | MasterRunner):
            self.runner.register_message("seatcount_report", self._on_report)
            self.runner.register_message("seatcount_refused", self._on_refused)
            self.environment.events.spawning_complete.add_listener(self._on_spawning_complete)
            self.environment.events.test_stopping.add_listener(self._on_test_stopping)
        if isinstance(self.runner, WorkerRunner):
            self.environment.events.test_start.add_listener(self._on_worker_start)
        self.environment.events.quitting.add_listener(self._on_quitting)

    def _on_level(self, msg: Any, **_: object) -> None:
        if self.meter is not None:
            self.meter.level_users = msg.data["users"]

    def _on_close(self, **_: object) -> None:
        if self.meter is not None:
            self.meter.closing = True
            self._report()

    def _on_stop(self, **_: object) -> None:
        if self.meter is not None:
            self.meter.stop()
            self._report(stopped=True)
            self.meter = None

    def _on_report(self, msg: Any, **_: object) -> None:
        report = msg.data
        self._reports[report["worker"]] = report
        if self.lead is not None:
            self.lead.take_live([LiveRow(*row) for row in report["live"]])

    def _on_spawning_complete(self, user_count: int, **_: object) -> None:
        if self.lead is not None and user_count:
            self.lead.begin_level(user_count)
            self.set_level(user_count)

    def _on_worker_start(self, **_: object) -> None:
        try:
            self._begin_measuring()
        except InputError as error:
            self._refuse(str(error))
            self.runner.send_message("seatcount_refused", str(error))

    def _on_refused(self, msg: Any, **_: object) -> None:
        """A worker cannot take part: a test with fewer users than it says would mislead."""
        self._refuse(f"A worker cannot take part: {msg.data}")
        gevent.spawn(self.runner.quit if self.headless else self.runner.stop)

    def _on_test_stopping(self, **_: object) -> None:
        """Somebody else than the plan ends the test: Ctrl-C, SIGTERM, or the web page's stop button."""
        if self.lead is None:
            return
        if self.headless:
            self._exit_code = self._exit_code or EXIT_INTERRUPTED
        self.end(drain_s=0 if self.headless else STOP_DRAIN_S)

    def _on_quitting(self, **_: object) -> None:
        leads = not isinstance(self.runner, WorkerRunner)
        if self.lead is not None or (leads and self.headless and not self._complete):
            self._exit_code = self._exit_code or EXIT_INTERRUPTED
        self.end(drain_s=0)
        if self.meter is not None:
            self.meter.stop()
            self.meter = None
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
        self.environment.process_exit_code = self._exit_code

    def _hide_credentials(self) -> None:
        """Keeps a password in --host to ourselves: Locust shows and sends the host."""
        host = self.environment.host
        if host and split_credentials(host)[0] != split_credentials(self._host or "")[0]:
            self._host = host
        if host:
            self.environment.host = self.options.host = split_credentials(host)[0]


@events.init_command_line_parser.add_listener
def _add_flags(parser: ArgumentParser, **_: object) -> None:
    add_flags(parser)
