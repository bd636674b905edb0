"""The live line, which shows how a running test goes. Knows of a level only what `live` counts."""

import logging
import shutil
import sys
import time

from loadtest.clock import unix_now
from loadtest.run.live.level import LiveLevel

logger = logging.getLogger(__name__)


class LiveLine:
    """Shows one line on a terminal and rewrites it. Without a terminal, logs a line every `every_s`
    seconds."""

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


LATE_ADVICE = "use --processes or another machine"
"""What helps a load generator that is late."""


def live_text(level: LiveLevel | None, *, level_s: float | None, left_s: float | None) -> str:
    """Builds the whole line, such as `8 users: TTFT p95 0.21 s, ... | 12/30 s | 1:20 left`."""
    if level is None:
        return "starting or stopping users ..."
    held = max(0.0, unix_now() - level.start_unix_s)
    planned = f"/{level_s:.0f}" if level_s else ""
    left = f" | {_minutes_and_seconds(left_s)} left" if left_s is not None else ""
    trouble = level.generator_trouble()
    warning = f"{trouble}; {LATE_ADVICE} | " if trouble else ""
    return f"{warning}{describe(level)} | {held:.0f}{planned} s{left}"


def describe(level: LiveLevel) -> str:
    """Describes a level: `8 users: TTFT p95 0.21 s, TPOT p95 21 ms, KV 43 %, 143 requests, 0 errors`. Failed
    requests are listed by kind: `4 errors: 3 x 503, 1 x timeout`."""
    sample = level.last_sample
    ttft, tpot = (_value(found) for found in (level.ttft_p95_s(), level.tpot_p95_s()))
    parts = [
        f"TTFT p95 {ttft[0]}{ttft[1]:.2f} s" if ttft is not None else "TTFT -",
        f"TPOT p95 {tpot[0]}{tpot[1] * 1000:.0f} ms" if tpot is not None else "TPOT -",
        f"KV {sample.kv_cache_usage:.0%}" if sample and sample.kv_cache_usage is not None else "KV -",
        f"{level.requests} requests",
        f"{level.errors} errors{': ' if level.failures else ''}{level.kinds()}",
    ]
    title = "open loop" if level.users is None else f"{level.users} users"
    return f"{title}: {', '.join(parts)}"


def _value(found: tuple[float, bool] | None) -> tuple[str, float] | None:
    """Returns a percentile with the words before it, which say whether the true one may be larger."""
    return None if found is None else ("at least " if found[1] else "", found[0])


def _minutes_and_seconds(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
