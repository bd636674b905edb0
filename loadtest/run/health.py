"""The health of the load generator itself: the delay of its event loop, its CPU use and its requests in
flight."""

import asyncio
import resource
import sys
import time
from collections.abc import Callable

from loadtest.clock import unix_now
from loadtest.record import ClientSample, RequestRecord
from loadtest.run.lasting import keep_running
from loadtest.run.sink import RowFile

LAG_PROBE_S = 0.02
"""Seconds between two timers on the event loop, each of which shows how late the loop is."""


class HealthWatch:
    """Writes one row per second about the health of this process. Methods run on the event loop's thread;
    other threads may read `in_flight`."""

    def __init__(self, rows: RowFile) -> None:
        self.rows = rows
        self.started = 0
        self.ended = 0
        self.latest: ClientSample | None = None
        """The last row; None before the first."""
        self._task: asyncio.Task[None] | None = None
        self._delay_s: float | None = None

    @property
    def in_flight(self) -> int:
        return self.started - self.ended

    def note_delay(self, record: RequestRecord) -> None:
        """Open loop: notes how long after its due time a request was sent. The next row holds the longest of
        these delays."""
        if record.scheduled_unix_s is not None and record.sent_s is not None:
            delay_s = record.start_unix_s + record.sent_s - record.scheduled_unix_s
            self._delay_s = delay_s if self._delay_s is None else max(self._delay_s, delay_s)

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(
            keep_running(self._watch, what="Watching the load generator's health")
        )

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            began, cpu_began = time.perf_counter(), time.process_time()
            lags = await _probe_lag(until=began + 1.0)
            took = time.perf_counter() - began
            self.latest = self._sample(lags, cpu=(time.process_time() - cpu_began) / took)
            self.rows.append(self.latest)

    def _sample(self, lags: list[float], *, cpu: float) -> ClientSample:
        lags.sort()
        delay_s, self._delay_s = self._delay_s, None
        return ClientSample(
            unix_s=unix_now(),
            loop_lag_max_s=round(lags[-1], 6),
            loop_lag_p99_s=round(lags[int(0.99 * (len(lags) - 1))], 6),
            cpu=round(cpu, 4),
            in_flight=self.in_flight,
            started_total=self.started,
            ended_total=self.ended,
            due_to_sent_max_s=None if delay_s is None else round(delay_s, 6),
            rss_peak_bytes=_rss_peak_bytes(),
        )


async def _probe_lag(*, until: float, now: Callable[[], float] = time.perf_counter) -> list[float]:
    lags: list[float] = []
    while not lags or now() < until:
        due = now() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        lags.append(max(0.0, now() - due))
    return lags


def _rss_peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
