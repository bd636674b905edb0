"""How a load test ends: the exit code, and signals that are taken as Ctrl-C. Knows no run."""

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
    """What the process says when it ends. Code 0: the plan ran, whatever the server answered."""

    def __init__(self, environment: Environment, *, headless: bool) -> None:
        self.code = 0
        self._environment = environment
        self._headless = headless

    def fail(self, sentence: str, *, code: int = EXIT_FAILED) -> None:
        """Says why the test is not what was asked for, on the console and on the web page."""
        logger.error(sentence)
        self.code = code
        assert self._environment.runner is not None
        self._environment.runner.log_exception("local", sentence, "")

    def refuse(self, sentence: str) -> None:
        """Says what is wrong with the input."""
        if self._headless:
            hide_statistics()
        self.fail(sentence, code=EXIT_BAD_INPUT)

    def interrupt(self) -> None:
        """Notes that the plan was cut short; an earlier failure says more."""
        self.code = self.code or EXIT_INTERRUPTED


def take_sigterm_as_ctrl_c() -> None:
    """Ends the test at once; Locust would handle SIGTERM only after the shape's end."""
    gevent.signal_handler(signal.SIGTERM, _interrupt)


def _interrupt() -> None:
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def leave_ctrl_c_to_master(*, within_s: float) -> None:
    """A terminal's Ctrl-C reaches every process of `--processes`. The master ends the run, collects the rows
    and tells the workers to go; one that is forgotten goes by itself after `within_s`."""
    gevent.signal_handler(
        signal.SIGINT, lambda: gevent.spawn_later(within_s, os.kill, os.getpid(), signal.SIGTERM)
    )
