"""Latency over the number of users, and the numbers of users at which it crosses its objectives."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from analysis.sizing.latency.load import simulate_closed_loop
from analysis.virtual.processes import for_each
from analysis.virtual.service import Service
from loadtest.model.step_time import SpeedBands
from loadtest.record import Slo

LOAD_FACTOR = 1.6
"""Ratio of neighbouring numbers of users that are simulated first."""
CLOSE = 1.08
"""Ratio of neighbouring numbers of users around a crossing, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyCurve:
    """Simulated p95 of TTFT and TPOT, seconds, for increasing numbers of users."""

    users: tuple[int, ...]
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    reach: float
    """Largest number of users that is simulated."""
    bands: SpeedBands

    def crossings(
        self,
        seconds: Sequence[float],
        objective_s: float,
        *,
        ends: tuple[float, float] = (1.0, 1.0),
        scale: float = 1.0,
    ) -> tuple[float, float, float]:
        """Finds the number of users at which a p95 crosses its objective; infinite if it never does.

        Between the simulated numbers of users, the logarithm of the p95 is interpolated along the rising
        curve that fits best, because a p95 of some thousand requests has an error of its own. Returns lower
        end, estimate and upper end: at the lower end, times are longer than predicted by the upper factor of
        `ends`. Below the first simulated number of users the answer is 0.

        seconds: the p95s of the curve, ttft_s or tpot_s. scale: factor on these p95s.
        """
        rising = isotonic_regression(np.log(np.maximum(seconds, 1e-9))).x

        def users(factor: float) -> float:
            allowed = math.log(objective_s / (scale * factor))
            return float(np.interp(allowed, rising, self.users, left=0.0, right=math.inf))

        return users(ends[1]), users(1.0), users(ends[0])


def simulate_curve(
    service: Service,
    bands: SpeedBands,
    slo: Slo,
    *,
    reach: float,
    length: float = 1.0,
    at_once: int = 1,
    only_first: bool = False,
) -> LatencyCurve:
    """Simulates p95 of TTFT and TPOT at fewer and fewer users, starting at `reach`; returns the curve.

    Stops at the first number of users that meets both objectives even at the slow end of the bands, or at
    one user. Then simulates more numbers of users around the crossings. length: factor on the requests of
    each number of users. at_once: numbers of users that are simulated side by side; more are simulated in
    total, in less time. only_first: leaves out loads around a crossing where the other objective is missed.
    """
    found: dict[int, tuple[float, float]] = {}

    def simulate(numbers: Sequence[int]) -> None:
        new = [users for users in numbers if users not in found]
        found.update(zip(new, for_each(p95_s, new), strict=True))

    def p95_s(users: int) -> tuple[float, float]:
        return simulate_closed_loop(service, users, length=length).p95_s()

    def surely_met(users: int) -> bool:
        ttft_s, tpot_s = found[users]
        return ttft_s * bands.ttft[1] < slo.ttft_p95_s and tpot_s * bands.tpot[1] < slo.tpot_p95_s

    falling = [max(int(reach), 1)]
    while falling[-1] > 1:
        falling.append(max(int(falling[-1] / LOAD_FACTOR), 1))
    for first in range(0, len(falling), at_once):
        simulate(falling[first : first + at_once])
        if any(surely_met(users) for users in falling[first : first + at_once]):
            break
    objectives_s = (slo.ttft_p95_s, slo.tpot_p95_s)
    order = [0, 1]
    if only_first:
        order.sort(key=lambda which: _bracket(found, which, objectives_s[which]) or (math.inf, math.inf))
    for which in order:
        own, other = (_bracket(found, one, objectives_s[one]) for one in (which, 1 - which))
        if not (only_first and own and other and own[0] >= other[1]):
            _close_in(found, which, objectives_s[which], simulate, at_once)
    numbers = sorted(found)
    ttfts_s, tpots_s = zip(*(found[number] for number in numbers), strict=True)
    return LatencyCurve(users=tuple(numbers), ttft_s=ttfts_s, tpot_s=tpots_s, reach=reach, bands=bands)


def _bracket(
    found: Mapping[int, tuple[float, float]], which: int, objective_s: float
) -> tuple[int, int] | None:
    """Returns the numbers of users around a crossing; None if all of them or none meets the objective."""
    above = [users for users in sorted(found) if found[users][which] > objective_s]
    below = [users for users in sorted(found) if users < min(above, default=0)]
    return (below[-1], above[0]) if above and below else None


def _close_in(
    found: Mapping[int, tuple[float, float]],
    which: int,
    objective_s: float,
    simulate: Callable[[Sequence[int]], None],
    at_once: int,
) -> None:
    """Simulates numbers of users between the two around a crossing until these are CLOSE."""
    bracket = _bracket(found, which, objective_s)
    if bracket is None:
        return
    low, high = bracket
    while high - low > 1 and high > CLOSE * low:
        ratio = (high / low) ** (1 / (at_once + 1))
        inner = {min(max(round(low * ratio**step), low + 1), high - 1) for step in range(1, at_once + 1)}
        simulate(sorted(inner))
        high = next((users for users in sorted(inner) if found[users][which] > objective_s), high)
        low = max((users for users in inner if users < high), default=low)
