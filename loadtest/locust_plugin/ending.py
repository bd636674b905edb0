"""How a load test ends: its exit code, and the handling of SIGTERM and Ctrl-C. Knows no run."""

import logging
import os
import signal

import gevent
from locust.env import Environment

from loadtest.locust_plugin.statistics import hide_statistics

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class Ending:
    """Reports failures and keeps the exit code. Code 0: the plan ran to its end, whatever the server
    answered."""

    def __init__(self, environment: Environment, *, headless: bool) -> None:
        self.code = 0
        self._environment = environment
        self._headless = headless

    def fail(self, sentence: str, *, code: int = EXIT_FAILED) -> None:
        """Reports why the test failed, on the console and on the web page, and sets the exit code."""
        logger.error(sentence)
        self.code = code
        assert self._environment.runner is not None
        self._environment.runner.log_exception("local", sentence, "")

    def refuse(self, sentence: str) -> None:
        """Reports what is wrong with the input and sets the exit code."""
        if self._headless:
            hide_statistics()
        self.fail(sentence, code=EXIT_BAD_INPUT)

    def interrupt(self) -> None:
        """Sets the exit code of a plan that was cut short, unless an earlier failure has set one."""
        self.code = self.code or EXIT_INTERRUPTED


def take_sigterm_as_ctrl_c() -> None:
    """Installs a handler that treats SIGTERM like Ctrl-C, which ends the test at once. Without it, Locust
    handles SIGTERM only after the shape has ended."""
    gevent.signal_handler(signal.SIGTERM, _interrupt)


def _interrupt() -> None:
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def leave_ctrl_c_to_master(*, within_s: float) -> None:
    """Lets a worker go on after a terminal's Ctrl-C, which reaches every process of `--processes`: the leader
    ends the run, collects the rows and tells the workers to exit. A worker that is not told exits by
    itself `within_s` seconds after the Ctrl-C."""
    gevent.signal_handler(
        signal.SIGINT, lambda: gevent.spawn_later(within_s, os.kill, os.getpid(), signal.SIGTERM)
    )
