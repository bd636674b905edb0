"""Simulates one load on a planned deployment in a steady state, and takes its latency. Knows no wall."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.answers.sizing import AtLoad, FloatBand, LatencyBands
from analysis.statistics.arrays import Floats, Ints
from analysis.statistics.samples import warm_up_end
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import VirtualRun, VirtualTimes, simulate_arrivals, simulate_users
from analysis.virtual.service import ChattingClass, Service, worst_p95_s
from loadtest.model.step_time import SpeedBands

LOAD_REQUESTS = 4000
"""Least number of requests of a simulated load, for a p95 that does not jump."""
MANY_EACH, MANY, FEW_EACH = 24, 8000, 2
"""Requests of each user, so that the warm-up is over; above MANY requests in total FEW_EACH of each user
suffice, because many users start near the steady state."""
ARRIVALS = 3000
"""Number of requests of a simulated open loop."""
STEADY_SHARE = 0.98
"""Share of the arriving requests that a stable open loop ends while others arrive."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadTimes:
    """Latency of the requests of a load, seconds, after the measured warm-up. Each array has shape (n,)."""

    ttft_s: Floats
    tpot_s: Floats
    """TPOT; nan for requests with a single token."""
    e2e_s: Floats
    kind: Ints
    """Position of the class of users that each request is of."""
    classes: Sequence[ChattingClass]
    """The classes of a mix; empty if all users are alike."""
    in_flight: float
    output_tok_s: float
    stable: bool
    """Whether requests end as fast as they arrive."""

    def p95_s(self) -> tuple[float, float]:
        """Returns the p95 of TTFT and of TPOT, seconds. TPOT is 0 if every request has a single token.

        In a mix each is that of the class nearest to its own objective, or farthest beyond it, in proportion
        to the objective of the run.
        """
        if not self.classes:
            return quantile_s(self.ttft_s, 0.95), quantile_s(self.decoded_s, 0.95)
        ttft_x, tpot_x = [one.ttft_x for one in self.classes], [one.tpot_x for one in self.classes]
        decoded = ~np.isnan(self.tpot_s)
        return (
            worst_p95_s(self.ttft_s, self.kind, own_s=ttft_x, run_s=1.0),
            worst_p95_s(self.decoded_s, self.kind[decoded], own_s=tpot_x, run_s=1.0)
            if decoded.any()
            else 0.0,
        )

    @property
    def decoded_s(self) -> Floats:
        """TPOT of the requests with two tokens or more."""
        return self.tpot_s[~np.isnan(self.tpot_s)]

    def of_class(self, position: int) -> "LoadTimes":
        """Returns the latency of the requests of one class."""
        mine = self.kind == position
        return replace(
            self,
            ttft_s=self.ttft_s[mine],
            tpot_s=self.tpot_s[mine],
            e2e_s=self.e2e_s[mine],
            kind=self.kind[mine],
            classes=(),
        )


def quantile_s(values_s: Floats, share: float) -> float:
    """Returns a quantile, seconds; 0 without values."""
    return float(np.quantile(values_s, share)) if len(values_s) else 0.0


def simulate_closed_loop(
    service: Service, users: int, *, together: bool = False, length: float = 1.0
) -> LoadTimes:
    """Simulates a constant number of users.

    together: all send their first request at once. length: factor on the number of requests.
    """
    wanted = max(LOAD_REQUESTS, min(MANY_EACH * users, MANY), FEW_EACH * users)
    requests = max(round(length * wanted), FEW_EACH * users)
    run = simulate_users(service, users, requests=requests, together=together)
    return _steady(run, stable=True)


def simulate_open_loop(service: Service, rate: float) -> LoadTimes:
    """Simulates requests that arrive at random (Poisson), `rate` a second."""
    rng = random.Random(0)
    at_s, due = 0.0, []
    for _ in range(ARRIVALS):
        at_s += rng.expovariate(rate)
        due.append(DueRequest.drawn(service, at_s, rng))
    run = simulate_arrivals(service, due)
    return _steady(run, stable=_keeps_up(run))


def _keeps_up(run: VirtualRun) -> bool:
    """Returns whether requests end as fast as they arrive: those in flight do not grow over the last half."""
    begin_s, end_s = run.window
    middle_s = (begin_s + end_s) / 2
    arrivals_s = np.array([one.arrival_s for trace in run.traces for one in trace.requests])
    ends_s = np.array([one.end_s for trace in run.traces for one in trace.requests])
    arrived = int(np.sum((arrivals_s > middle_s) & (arrivals_s <= end_s)))
    ended = int(np.sum((ends_s > middle_s) & (ends_s <= end_s)))
    noise = 3.0 * math.sqrt(max(arrived, 1)) * 0.5
    return ended >= STEADY_SHARE * arrived - noise


def _steady(run: VirtualRun, *, stable: bool) -> LoadTimes:
    begin_s, end_s = run.window
    times: VirtualTimes = run.times(0.0 if run.users else begin_s, end_s)
    order = np.argsort(times.end_s, kind="stable")
    cut = max(warm_up_end(times.duration_s[order]), warm_up_end(times.ttft_s[order]))
    kept = order[cut:]
    window_s = max(end_s - float(times.end_s[order[cut - 1]]) if cut else end_s, 1e-9)
    return LoadTimes(
        ttft_s=times.ttft_s[kept],
        tpot_s=times.tpot_s[kept],
        e2e_s=times.duration_s[kept],
        kind=times.kind[kept],
        classes=run.service.chatting.classes,
        in_flight=float(times.duration_s[kept].sum()) / window_s,
        output_tok_s=float(times.output[kept].sum()) / window_s,
        stable=stable,
    )


def at_load(
    times: LoadTimes, bands: SpeedBands, *, users: int | None, rate: float | None, replicas: int
) -> AtLoad:
    """Returns the answer for one load.

    times: of one replica. users, rate: the load as the user states it. Where requests arrive faster than they
    end, TTFT and E2E have no steady value and are left out.
    """
    low, high = bands.e2e
    in_flight = times.in_flight * replicas
    tokens_s = times.output_tok_s * replicas
    as_arrives = (tokens_s, tokens_s, tokens_s)
    return AtLoad(
        users=users,
        rate_per_s=rate,
        stable=times.stable,
        in_flight=(in_flight * low, in_flight, in_flight * high)
        if rate
        else (in_flight, in_flight, in_flight),
        output_tok_s=as_arrives if rate and times.stable else (tokens_s / high, tokens_s, tokens_s / low),
        ttft_s=_bands(times.ttft_s, bands.ttft) if times.stable else None,
        tpot_s=_bands(times.decoded_s, bands.tpot) if len(times.decoded_s) else None,
        e2e_s=_bands(times.e2e_s, bands.e2e) if times.stable else None,
    )


def _bands(values_s: Floats, ends: tuple[float, float]) -> LatencyBands:
    def band(value_s: float) -> FloatBand:
        low, high = ends
        return value_s * low, value_s, value_s * high

    return LatencyBands(
        mean=band(float(values_s.mean())),
        p50=band(quantile_s(values_s, 0.5)),
        p95=band(quantile_s(values_s, 0.95)),
        p99=band(quantile_s(values_s, 0.99)),
    )
