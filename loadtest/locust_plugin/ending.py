"""How a load test ends: its exit code, and the handling of SIGTERM and Ctrl-C. Knows nothing of runs."""

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
    """Reports failures and keeps the exit code of the process. Code 0 means that the plan ran to its end and
    all rows are there, even if the server answered some requests with errors."""

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

    def fall_short(self, sentence: str) -> None:
        """Reports that a run which is complete otherwise does not hold what was planned. Keeps the code of an
        earlier failure or interruption."""
        code = self.code
        self.fail(sentence)
        self.code = code or EXIT_FAILED

    def interrupt(self) -> None:
        """Sets the exit code for a plan that was cut short. Keeps the code of an earlier failure, if there is
        one."""
        self.code = self.code or EXIT_INTERRUPTED


def take_sigterm_as_ctrl_c() -> None:
    """Installs a handler that treats SIGTERM like Ctrl-C: the test ends at once. Without this handler, Locust
    reacts to SIGTERM only after the plan of users has ended."""
    gevent.signal_handler(signal.SIGTERM, _interrupt)


def _interrupt() -> None:
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def leave_ctrl_c_to_master(*, within_s: float) -> None:
    """Makes this worker keep running after a Ctrl-C, which a terminal sends to every process of
    `--processes`. The leader still has to collect the workers' rows; then it tells the workers to exit. A
    worker that is not told exits by itself `within_s` seconds after the Ctrl-C."""
    gevent.signal_handler(
        signal.SIGINT, lambda: gevent.spawn_later(within_s, os.kill, os.getpid(), signal.SIGTERM)
    )
