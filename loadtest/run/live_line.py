"""TODO."""

import shutil
import sys
import time

from loadtest.run.coordinator import logger
from loadtest.run.live import LiveLevel, describe, minutes_and_seconds


class LiveLine:
    """One line on a terminal, rewritten every second; elsewhere a log line now and then."""

    def __init__(self, *, every_s: float = 10.0) -> None:
        self._tty = sys.stderr.isatty()
        self._every_s = every_s
        self._shown = 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._tty:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be rewritten
            sys.stderr.write(f"\r\x1b[2K{text[:width]}")
            sys.stderr.flush()
        elif now - self._shown >= self._every_s:
            self._shown = now
            logger.info(text)

    def clear(self) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def live_text(level: LiveLevel | None, *, level_s: float | None, left_s: float | None) -> str:
    """`8 users: TTFT p95 0.21 s, ... | 12/30 s | 1:20 left`."""
    if level is None:
        return "starting or stopping users ..."
    held = time.time() - level.start_unix_s
    of = f"/{level_s:.0f}" if level_s else ""
    left = f" | {minutes_and_seconds(left_s)} left" if left_s is not None else ""
    return f"{describe(level)} | {held:.0f}{of} s{left}"
