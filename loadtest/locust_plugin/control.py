"""Ties a run to Locust's events: who leads, who measures, and how a run ends without losing a row.

One Control a process. The leader (the only process, or the master) has a Coordinator; whoever runs users
has a Generator. They talk over Locust's own messages, which LocalRunner delivers to itself.
"""

import logging
import os
import signal
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

import gevent
import msgspec
from locust import events
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.client.target import split_credentials
from loadtest.errors import InputError
from loadtest.record import Outcome, RequestRecord, WorkerInfo
from loadtest.run.coordinator import Coordinator, opening
from loadtest.run.generator import Generator
from loadtest.run.live import LiveRow
from loadtest.run.live_line import LiveLine
from loadtest.run.loop import LoopThread
from loadtest.run.messages import ArrivalAssignments, LeaderTime, Plan, RowBatch, RowReceipt
from loadtest.run.open_loop import LOOKAHEAD_S
from loadtest.run.shipping import Receiver
from loadtest.settings import Settings, add_flags, resolve_settings
from loadtest.workload.arrivals import WorkerAssignment

logger = logging.getLogger(__name__)

REPORT_S = 1.0
"""How often a measuring process tells the leader what it has."""
SHIP_S = 0.25
"""How often a worker on another machine looks for rows to send."""
DELIVERY_S = 15.0
"""How long the leader waits for workers to say that it has their rows, while nothing is delivered."""
QUIT_S = 5.0
"""How long a worker that is told to end tries to deliver its rows."""
SILENT_S = 2.5
"""Without a report for so long, it is not known whether a worker still holds its users."""
LOST_S = 10.0
"""Without a report for so long, a worker is not waited for."""
STOP_DRAIN_S = 10.0
"""How long streams may finish after a time limit or the web page's stop button."""
FIRST_ARRIVALS_S = 0.5
"""Time for the workers to learn their shares before the first request is due."""
ROWS_S = 1.0
"""So long after its end a request's row is on the leader's disk: FLUSH_S, from another machine SHIP_S too."""
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_PLAN = "seatcount_plan"  # travels with Locust's parsed options in each spawn message


class RequestFailed(Exception):  # noqa: N818 (the words Locust's statistics show)
    """What Locust's own statistics show of a request that was not answered."""


class Control:
    """One process's part in load tests, from Locust's start to its exit."""

    def __init__(self, environment: Environment) -> None:
        assert environment.runner is not None
        assert environment.parsed_options is not None
        self.environment = environment
        self.runner = environment.runner
        self.options = environment.parsed_options
        self.headless = bool(self.options.headless)
        self.processes = int(self.options.processes or 0)
        self.users_given: int | None = self.options.num_users
        self.spawn_rate_given: float | None = self.options.spawn_rate
        self.coordinator: Coordinator | None = None
        self.generator: Generator | None = None
        self.line = LiveLine()
        self._loop: LoopThread | None = None
        self._host = environment.host
        self._exit_code = 0
        self._complete = False
        self._ending: Coordinator | None = None
        self._surplus_of: int | None = None
        self._reports: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, float] = {}
        self._holders: tuple[str, ...] = ()
        self._receiver: Receiver | None = None
        self._shares: list[WorkerAssignment] = []
        self._hide_credentials()
        self._register()

    @property
    def loop(self) -> LoopThread:
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop

    # ---- the leader ----

    def begin(self, scenario: str, *, check: Callable[[Settings], None]) -> Coordinator | None:
        """Reads the settings, asks the server and opens the run. On bad input, which `check` may raise too,
        says one sentence, notes the exit code and returns None."""
        self._complete = False
        self._surplus_of = None
        self._reports.clear()
        self._heard.clear()
        self._shares.clear()
        try:
            self._hide_credentials()
            logger.info("Asking the server what it is; a first answer may take minutes where it compiles ...")
            settings = resolve_settings(vars(self.options))
            check(settings)
            self.coordinator = Coordinator(
                host=self._host, settings=settings, scenario=scenario, loop=self.loop
            )
            setattr(self.options, _PLAN, self.coordinator.plan.write())
            if isinstance(self.runner, LocalRunner):
                self._begin_measuring()
        except InputError as error:
            self._refuse(str(error))
            return None
        return self.coordinator

    def let_surplus_finish(self, seconds: float) -> None:
        """How long streams of users that stop may go on, before they are cancelled; Locust's --stop-timeout
        says it louder."""
        if not self.environment.stop_timeout:
            self.environment.stop_timeout = seconds

    def given(self, setting: str) -> bool:
        """Whether a flag or the web form says something of this setting."""
        return getattr(self.options, setting) not in (None, "")

    def announce(self, plan: str) -> None:
        assert self.coordinator is not None
        for text in opening(self.coordinator, plan=plan):
            logger.info(text)

    def begin_level(self, users: int) -> None:
        """All users of a level have started: it counts from now, and rows carry its number."""
        self._surplus_of = None
        if self.coordinator is not None:
            self._holders = self._worker_names()
            self.coordinator.begin_level(users)
            self.runner.send_message("seatcount_level", {"users": users})

    def leave_level(self) -> None:
        """Ends the level; until the next one begins, rows belong to none."""
        self._surplus_of = None
        self.end_level()
        self.runner.send_message("seatcount_level", {"users": None})

    def keep_level(self) -> None:
        """Lets the level last until now, or until a worker was last heard of: of a lost one nobody knows when
        its users went."""
        if self._surplus_of is not None and self.runner.user_count <= self._surplus_of:
            self.begin_level(self._surplus_of)
        if self.coordinator is not None:
            heard = [self._heard.get(name, 0.0) for name in self._holders]
            silent = [at for at in heard if time.time() - at > SILENT_S]
            self.coordinator.keep_level(min(silent, default=time.time()))

    def save_for_look(self) -> float:
        """Writes down all that the rows so far are read with; returns the seconds until those are on the
        disk."""
        assert self.coordinator is not None
        self.keep_level()
        self.coordinator.info.workers = self._workers()
        self.coordinator.save()
        return ROWS_S

    def end_level(self) -> None:
        if self.coordinator is not None:
            self.keep_level()
            self.coordinator.end_level()

    @property
    def worker_count(self) -> int:
        """Processes that run users."""
        return max(1, len(self._worker_names()))

    def _worker_names(self) -> tuple[str, ...]:
        runner = self.runner
        if not isinstance(runner, MasterRunner):
            return ("0",)
        present = [*runner.clients.ready, *runner.clients.spawning, *runner.clients.running]
        return tuple(str(index) for index in sorted(runner.worker_indexes[client.id] for client in present))

    @property
    def arriving(self) -> bool:
        """Open loop: whether requests are still to become due."""
        return not self._reports or any(self._reports[name]["arriving"] for name in self._audible())

    def _share_arrivals(self, coordinator: Coordinator) -> None:
        """Says who sends what: at the start, and again when workers have come or gone."""
        now = time.time()
        if not self._shares:
            coordinator.begin_arrivals(now + FIRST_ARRIVALS_S)
        assert coordinator.info.arrivals is not None
        start_unix_s = coordinator.info.arrivals.start_unix_s
        workers = self._worker_names()
        if not self._shares or workers != self._shares[-1].workers:
            from_s = now - start_unix_s + LOOKAHEAD_S + FIRST_ARRIVALS_S if self._shares else 0.0
            self._shares.append(WorkerAssignment(from_s, workers))
        assignments = [[share.from_s, share.workers] for share in self._shares]
        self.runner.send_message(
            "seatcount_arrivals", {"start_unix_s": start_unix_s, "assignments": assignments}
        )

    def end(self, *, drain_s: float) -> None:
        """Lets streams finish for `drain_s`, cancels the rest, waits until every row is delivered and
        completes the run folder. What a Ctrl-C cuts short, the next call takes up."""
        self.end_level()
        coordinator, self.coordinator = self.coordinator or self._ending, None
        if coordinator is None:
            return
        self._ending = coordinator
        self._receiver = coordinator.receiver  # rows keep coming until the next run
        self.line.clear()
        self.runner.send_message("seatcount_close", None)
        self._wait(drain_s, lambda report: report["in_flight"] == 0, "streams to end")
        self.runner.send_message("seatcount_stop", None)
        self._wait(DELIVERY_S, lambda report: report["stopped"], "workers to deliver their rows")
        if 0 < self.processes < len(self._reports):
            coordinator.warn(
                f"{len(self._reports)} workers took part and --processes is {self.processes}: workers of "
                "another test have joined (same master port)."
            )
        for name, report in self._reports.items():
            if not report["stopped"]:
                coordinator.warn(_undelivered(name, shares_disk=report["shares_disk"]))
        if coordinator.advisor is not None:
            if drain_s and (advice := coordinator.advisor.conclude()) is not None:
                logger.info("The answer: %s.", advice.line)
            coordinator.advisor.close()
        coordinator.finish(
            workers=self._workers(),
            clipped=sum(report["clipped"] for report in self._reports.values()),
        )
        self._ending = None
        self._complete = True
        logger.info(
            "The run is in %s; next: python -m analysis.capacity %s",
            coordinator.folder,
            coordinator.folder.parent,
        )

    def _workers(self) -> list[WorkerInfo]:
        return [
            WorkerInfo(name=name, clock_offset_s=None if report["shares_disk"] else report["clock_offset_s"])
            for name, report in sorted(self._reports.items())
        ]

    def _wait(self, seconds: float, ready: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Until every worker that is still heard of is ready, or nothing was delivered for `seconds`."""
        began, undelivered = time.monotonic(), self._undelivered_bytes()
        while not all(ready(self._reports[name]) for name in self._audible()):
            if self._undelivered_bytes() < undelivered:
                began, undelivered = time.monotonic(), self._undelivered_bytes()
            if time.monotonic() - began >= seconds:
                return
            self.line.show(f"waiting for {what} ...")
            gevent.sleep(0.1)

    def _audible(self) -> list[str]:
        return [name for name in self._reports if time.time() - self._heard[name] < LOST_S]

    def _undelivered_bytes(self) -> int:
        return sum(report["undelivered_bytes"] for report in self._reports.values())

    def fail(self, sentence: str, *, code: int = EXIT_FAILED) -> None:
        """Says why the test is not what was asked for, on the console and the web page."""
        logger.error(sentence)
        self._exit_code = code
        self.runner.log_exception("local", sentence, "")

    def _refuse(self, sentence: str) -> None:
        logging.getLogger("locust.stats_logger").disabled = self.headless  # tables of nothing
        self.fail(sentence, code=EXIT_BAD_INPUT)

    # ---- whoever runs users ----

    def _begin_measuring(self) -> None:
        plan = Plan.read(getattr(self.options, _PLAN))
        if self.generator is not None:
            self.generator.stop()
        own = split_credentials(self._host or "")[0].rstrip("/").removesuffix("/v1") == plan.host
        host = self._host if own and self._host else plan.host
        index = getattr(self.runner, "worker_index", 0)
        self.generator = Generator(plan, worker=str(index), loop=self.loop, host=host)
        self._report()

    def _report(self, *, stopped: bool = False) -> None:
        generator = self.generator
        if generator is None:
            return
        report: dict[str, Any] = msgspec.to_builtins(generator.report(stopped=stopped))
        for record in generator.take_unattended():
            self.tell_locust(record)
        self.runner.send_message("seatcount_report", report)

    def tell_locust(self, record: RequestRecord) -> None:
        """For Locust's own statistics, console and web page."""
        status = f" {record.http_status}" if record.outcome is Outcome.HTTP_ERROR else ""
        failed = record.outcome not in (Outcome.OK, Outcome.EMPTY, Outcome.CANCELLED)
        self.environment.events.request.fire(
            request_type="SSE",
            name=record.scenario,
            response_time=(record.end_s - (record.sent_s or 0.0)) * 1000,
            response_length=0,  # Locust shows it as bytes, which are not counted
            exception=RequestFailed(f"{record.outcome}{status}") if failed else None,
            context={},
        )

    def _keep_reporting(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self._report()

    # ---- Locust's events and messages ----

    def _register(self) -> None:
        measures = isinstance(self.runner, LocalRunner | WorkerRunner)
        if measures:
            self.runner.register_message("seatcount_level", self._on_level)
            self.runner.register_message("seatcount_arrivals", self._on_arrivals)
            self.runner.register_message("seatcount_close", self._on_close)
            self.runner.register_message("seatcount_stop", self._on_stop)
            gevent.spawn(self._keep_reporting)
        if isinstance(self.runner, LocalRunner | MasterRunner):
            self.runner.register_message("seatcount_report", self._on_report)
            self.runner.register_message("seatcount_refused", self._on_refused)
            self.environment.events.spawning_complete.add_listener(self._on_spawning_complete)
            self.environment.events.test_stopping.add_listener(self._on_test_stopping)
            if self.headless:
                gevent.signal_handler(signal.SIGTERM, _interrupt)
        if isinstance(self.runner, MasterRunner):
            self.options.enable_rebalancing = True  # the users of a lost worker go to the others
            self.runner.register_message("seatcount_rows", self._on_rows)
            self.environment.events.worker_connect.add_listener(self._on_worker_connect)
        if isinstance(self.runner, WorkerRunner):
            self.runner.register_message("seatcount_receipt", self._on_receipt)
            self.runner.register_message("seatcount_clock", self._on_clock)
            gevent.spawn(self._keep_shipping)
            if self.processes:
                gevent.signal_handler(signal.SIGINT, self._leave_ctrl_c_to_master)
            self.environment.events.test_start.add_listener(self._on_worker_start)
        self.environment.events.quitting.add_listener(self._on_quitting)

    def _on_level(self, msg: Any, **_: object) -> None:
        if self.generator is not None:
            self.generator.level_users = msg.data["users"]

    def _on_arrivals(self, msg: Any, **_: object) -> None:
        if self.generator is not None:
            self.generator.arrivals.take_assignments(msgspec.convert(msg.data, ArrivalAssignments))

    def _on_close(self, **_: object) -> None:
        if self.generator is not None:
            self.generator.stop_asking()
            self._report()

    def _on_stop(self, **_: object) -> None:
        if self.generator is not None:
            self.generator.stop()
            gevent.spawn(self._deliver_rest)

    def _deliver_rest(self) -> None:
        """Says that this worker is done once the leader has all of its rows."""
        while self.generator is not None and self.generator.delivery.undelivered_bytes:
            gevent.sleep(SHIP_S)
        self._report(stopped=True)
        self.generator = None

    def _keep_shipping(self) -> None:
        while True:
            for batch in self.generator.delivery.next_batches() if self.generator is not None else ():
                self.runner.send_message("seatcount_rows", msgspec.to_builtins(batch, builtin_types=(bytes,)))
            gevent.sleep(SHIP_S)

    def _on_receipt(self, msg: Any, **_: object) -> None:
        if self.generator is None:
            return
        self.generator.delivery.take(msgspec.convert(msg.data, RowReceipt))
        for batch in self.generator.delivery.next_batches():
            self.runner.send_message("seatcount_rows", msgspec.to_builtins(batch, builtin_types=(bytes,)))

    def _on_clock(self, msg: Any, **_: object) -> None:
        if self.generator is not None:
            self.generator.clock.take(msgspec.convert(msg.data, LeaderTime))

    def _on_report(self, msg: Any, **_: object) -> None:
        report = msg.data
        self._reports[report["worker"]] = report
        self._heard[report["worker"]] = time.time()
        if not report["shares_disk"]:
            answer = {"asked_unix_s": report["unix_s"], "leader_unix_s": time.time()}
            self.runner.send_message("seatcount_clock", answer, msg.node_id)
        if self.coordinator is not None:
            self.coordinator.take_live([LiveRow(*row) for row in report["live"]])

    def _on_spawning_complete(self, user_count: int, **_: object) -> None:
        if self.coordinator is None or not user_count:
            return
        if self.coordinator.settings.open_loop:
            self._share_arrivals(self.coordinator)
        elif self.runner.user_count > user_count:
            self._surplus_of = user_count  # workers let the streams of users that stop go on to their end
        else:
            self.begin_level(user_count)

    def _leave_ctrl_c_to_master(self) -> None:
        """A terminal's Ctrl-C reaches every process of `--processes`. The master ends the run, collects the
        rows and tells the workers to go; one that is forgotten goes by itself."""
        gevent.spawn_later(DELIVERY_S + QUIT_S, os.kill, os.getpid(), signal.SIGTERM)

    def _on_worker_start(self, **_: object) -> None:
        try:
            self._begin_measuring()
        except InputError as error:
            self._refuse(str(error))
            self.runner.send_message("seatcount_refused", str(error))

    def _on_rows(self, msg: Any, **_: object) -> None:
        receiver = self.coordinator.receiver if self.coordinator is not None else self._receiver
        if receiver is not None:
            receipt = receiver.take(msgspec.convert(msg.data, RowBatch))
            self.runner.send_message("seatcount_receipt", msgspec.to_builtins(receipt), msg.node_id)

    def _on_worker_connect(self, **_: object) -> None:
        """Locust is about to move users between workers: the level begins anew when that is done."""
        if self.coordinator is not None and not self.coordinator.settings.open_loop:
            self.leave_level()

    def _on_refused(self, msg: Any, **_: object) -> None:
        """A worker cannot take part: a test with fewer users than it says would mislead."""
        self._refuse(f"A worker cannot take part: {msg.data}")
        gevent.spawn(self.runner.quit if self.headless else self.runner.stop)

    def _on_test_stopping(self, **_: object) -> None:
        """Somebody else than the plan ends the test: Ctrl-C, SIGTERM, or the web page's stop button."""
        if self._shape_is_ending():
            self._end_in_its_place()
        if self.coordinator is None:
            return
        if self.headless:
            self._exit_code = self._exit_code or EXIT_INTERRUPTED
        self.end(drain_s=0 if self.headless else STOP_DRAIN_S)

    def _shape_is_ending(self) -> bool:
        """Another greenlet is in `end`, or was killed there."""
        return self._ending is not None and self.runner.shape_greenlet is not gevent.getcurrent()

    def _end_in_its_place(self) -> None:
        """A plan that has come to its end waits for streams no longer."""
        if self.headless:
            self._exit_code = self._exit_code or EXIT_INTERRUPTED
        if self.runner.shape_greenlet is not None:
            self.runner.shape_greenlet.kill()
        self.end(drain_s=0)

    def _on_quitting(self, **_: object) -> None:
        leads = not isinstance(self.runner, WorkerRunner)
        if self.coordinator is not None or (leads and self.headless and not self._complete):
            self._exit_code = self._exit_code or EXIT_INTERRUPTED
        if self._shape_is_ending():
            self._end_in_its_place()
        self.end(drain_s=0)
        if self.generator is not None:
            self._leave(self.generator)
            self.generator = None
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
        self.environment.process_exit_code = self._exit_code

    def _leave(self, generator: Generator) -> None:
        """This process ends before the run does: what it measured goes to the leader, or stays findable."""
        generator.stop()
        until = time.monotonic() + QUIT_S
        while generator.delivery.undelivered_bytes and time.monotonic() < until:
            gevent.sleep(SHIP_S)
        if generator.delivery.undelivered_bytes:
            logger.warning(
                "The master did not take all rows. Merge them (or scp): cp %s/*-%s.jsonl %s/",
                generator.folder,
                generator.worker,
                generator.plan.folder,
            )

    def _hide_credentials(self) -> None:
        """Keeps a password in --host to ourselves: Locust shows and sends the host."""
        host = self.environment.host
        if host and split_credentials(host)[0] != split_credentials(self._host or "")[0]:
            self._host = host
        if host:
            self.environment.host = self.options.host = split_credentials(host)[0]


def _interrupt() -> None:
    """SIGTERM as Ctrl-C: Locust would handle it only after the shape's end."""
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def _undelivered(worker: str, *, shares_disk: bool) -> str:
    if shares_disk:
        return f"Worker {worker} was lost: its last second of rows may be missing."
    return (
        f"Worker {worker} did not deliver all of its rows: copy requests-{worker}.jsonl and "
        f"client-{worker}.jsonl from its machine over those in this folder."
    )


@events.init_command_line_parser.add_listener
def _add_flags(parser: ArgumentParser, **_: object) -> None:
    add_flags(parser)
