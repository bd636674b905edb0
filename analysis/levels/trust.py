"""TODO."""

import math
from dataclasses import dataclass

from analysis.levels.context import Context
from analysis.levels.requests import RowFigures
from analysis.levels.window import window_mean, worst_worker
from analysis.reading.runs import Run
from analysis.statistics.samples import Window

MIN_REQUESTS = 20
LAG_FLOOR_S = 0.005
CPU_LIMIT = 0.85
CLIENT_ERROR_LIMIT = 0.01
MISCOUNT_LIMIT = 0.01


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrustGates:
    """When a level is trusted. Server errors and queues are evidence and no reason to distrust."""

    run: Run
    context: Context
    users: int
    window: Window
    seen: RowFigures
    in_flight: float
    miscount: float

    def reasons(self, *, steady: bool) -> list[str]:
        """Why the level is not trusted; empty when it is."""
        found = [] if steady else ["not steady: response times or KV usage still drift at the end"]
        if self.seen.n < MIN_REQUESTS:
            found.append(f"too few: {self.seen.n} requests ended in the window, {MIN_REQUESTS} are needed")
        return found + self._client() + self._load()

    def _client(self) -> list[str]:
        found = client_doubts(self.run, self.window, tpot_s=self.seen.tpot.p50 or 0.0)
        if self.seen.client_errors > CLIENT_ERROR_LIMIT * max(self.seen.n, 1):
            found.append(f"{self.seen.client_errors} of {self.seen.n} requests failed on the client's side")
        return found

    def _load(self) -> list[str]:
        found = []
        if not self.context.thinks and self.in_flight < 0.9 * self.users:
            found.append(f"load not reached: {self.in_flight:.1f} in flight of {self.users}")
        if self.in_flight > 1.1 * self.users + 0.5:
            found.append(
                f"more load than users: {self.in_flight:.1f} in flight of {self.users}, as when a worker "
                "that is cut off keeps its users"
            )
        off, allowed = self._littles_law()
        if abs(off) > allowed:
            found.append(f"Little's law is off by {100 * off:+.0f} %: rows are missing, or clocks differ")
        if abs(self.miscount) > MISCOUNT_LIMIT:
            more = "more" if self.miscount > 0 else "fewer"
            found.append(
                f"tokens disagree: the server counted {100 * abs(self.miscount):.0f} % {more} than our rows, "
                "over the whole run"
            )
        foreign = self._foreign()
        if foreign > max(0.5, 0.05 * self.in_flight):
            found.append(f"foreign load: the server holds {foreign:.1f} requests more than we sent")
        return found

    def _littles_law(self) -> tuple[float, float]:
        """Rate times response time against requests in flight, and what the window's edges allow."""
        life, window = self.window.request_duration_s, self.window.length_s
        if window < 20 * life or self.in_flight <= 0 or self.seen.cancelled:
            return 0.0, 1.0
        off = self.seen.n / window * life / self.in_flight - 1.0
        # Of people who think, all may have begun before the window.
        edges = self.users / self.seen.n if self.context.thinks else 0.0
        return off, 0.05 + 3.0 * math.sqrt(2.0 / self.in_flight) * 0.6 * life / window + edges

    def _foreign(self) -> float:
        """Requests on the server that are not ours, mean over the window; 0 where it cannot be told."""
        server = self.run.server
        held = window_mean(server.unix_s, server.running + server.waiting, self.window)
        return 0.0 if math.isnan(held) else held - self.in_flight


def client_doubts(run: Run, window: Window, *, tpot_s: float) -> list[str]:
    """Why the load generator's own times are not good enough in this window; empty when they are."""
    found = []
    lag_s, limit_s = worst_worker(run, run.client.loop_lag_s, window), max(LAG_FLOOR_S, 0.1 * tpot_s)
    if lag_s > limit_s:
        found.append(
            f"load generator late: event-loop lag {1e3 * lag_s:.0f} ms, limit {1e3 * limit_s:.0f} ms"
        )
    cpu = worst_worker(run, run.client.cpu, window)
    if cpu > CPU_LIMIT:
        found.append(f"load generator busy: {100 * cpu:.0f} % of a core, limit {100 * CPU_LIMIT:.0f} %")
    return found
