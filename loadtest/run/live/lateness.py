"""Whether the load generator itself is late, so that its time stamps are not the server's. Knows no level."""

from loadtest.lateness_limits import CPU_LIMIT, LAG_FLOOR_S, LAG_SHARE

MUCH_TOO_LATE = 2.0
"""Times the tolerated lag from which a level with more users is not worth trying."""
MIN_HEALTH_REPORTS = 3
"""Reports of a worker, one a second, that a verdict needs."""


class Lateness:
    """Mean lag and CPU use of each worker during a level."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, float, float]] = {}

    def add(self, worker: str, *, lag_s: float, cpu: float) -> None:
        """Takes what a worker has noticed of itself in the last second."""
        count, lag_sum, cpu_sum = self._sums.get(worker, (0, 0.0, 0.0))
        self._sums[worker] = (count + 1, lag_sum + lag_s, cpu_sum + cpu)

    def words(self, *, tpot_p50_s: float | None, factor: float = 1.0) -> str | None:
        """Says what is wrong with the load generator, such as `this machine is late: 38 ms`; None if nothing
        is known to be wrong. factor: how many times the tolerated lag is tolerated here."""
        known = [sums for sums in self._sums.values() if sums[0] >= MIN_HEALTH_REPORTS]
        if not known:
            return None
        lag_s = max(lag_sum / count for count, lag_sum, _ in known)
        cpu = max(cpu_sum / count for count, _, cpu_sum in known)
        if lag_s > factor * max(LAG_FLOOR_S, LAG_SHARE * (tpot_p50_s or 0.0)):
            return f"this machine is late: {lag_s * 1000:.0f} ms"
        if cpu > CPU_LIMIT:
            return f"this machine is busy: {cpu:.0%} of a core"
        return None
