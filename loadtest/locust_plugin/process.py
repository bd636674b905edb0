"""One process of a load test, driven by Locust's events: it leads runs, runs users, or does both. Knows
nothing of messages."""

from argparse import ArgumentParser
from pathlib import Path

from locust import events
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.locust_plugin.channel import Channel
from loadtest.locust_plugin.ending import Ending
from loadtest.locust_plugin.leader import Leader
from loadtest.locust_plugin.options import HiddenHost, LocustOptions
from loadtest.locust_plugin.statistics import show_only_summary
from loadtest.locust_plugin.worker import Worker
from loadtest.run.generator import Generator
from loadtest.run.loop import LoopThread
from loadtest.settings import add_flags


class LoadTestProcess:
    """Leads runs, runs users or does both in this process, from Locust's start to its exit."""

    def __init__(self, environment: Environment, *, workload: Path | None) -> None:
        """workload: the workload file that the locustfile names."""
        assert environment.runner is not None
        assert environment.parsed_options is not None
        runner = environment.runner
        channel = Channel(runner)
        options = LocustOptions(environment.parsed_options, workload=workload)
        host = HiddenHost(environment)
        self.worker: Worker | None = None
        """The part that runs users; None in Locust's master."""
        self.leader: Leader | None = None
        """The part that leads runs; None in a worker."""
        self._environment = environment
        self._ending = Ending(environment, headless=options.headless)
        self._loop: LoopThread | None = None
        if isinstance(runner, LocalRunner | WorkerRunner):
            self.worker = Worker(
                environment,
                channel=channel,
                options=options,
                host=host,
                ending=self._ending,
                loop=self._started_loop,
            )
        if isinstance(runner, LocalRunner | MasterRunner):
            self.leader = Leader(
                environment,
                channel=channel,
                options=options,
                host=host,
                ending=self._ending,
                loop=self._started_loop,
                own_worker=self.worker,
            )
        show_only_summary(environment.parsed_options)
        environment.events.quitting.add_listener(self._on_quitting)

    @property
    def generator(self) -> Generator | None:
        """The load generator of the run in progress; None between runs and in Locust's master."""
        return None if self.worker is None else self.worker.generator

    def _started_loop(self) -> LoopThread:
        """Returns the event loop of this process; the first call starts it."""
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop

    def _on_quitting(self, **_: object) -> None:
        if self.leader is not None:
            self.leader.quit()
        if self.worker is not None:
            self.worker.quit()
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
        self._environment.process_exit_code = self._ending.code


@events.init_command_line_parser.add_listener
def _add_flags(parser: ArgumentParser, **_: object) -> None:
    add_flags(parser)
