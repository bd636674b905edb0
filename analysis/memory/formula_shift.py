"""Corrects the KV-cache formula (`block_distribution`) by measured levels, and finds how many users the
corrected formula allows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.levels.level import Level
from analysis.memory.block_distribution import SMALLEST, Occupancy, Pressure
from analysis.statistics.crossings import logit
from loadtest.record import Slo

FORMULA_BIAS, FORMULA_SD = -0.12, 0.35  # ln(true F / formula) at the wall: 110 workloads in the engine
BLOCKED_SD = 0.3  # standard deviation of logit(true eps) - logit(formula) at the wall
CLUSTERING = 6.0  # variance / mean of preemption counts: measured 1.5 to 6
DRIFT = 0.1  # change of the formula's error for each factor e of F away from the wall
FAR_USERS = 100_000  # above, no number of users is named
NEAR = (0.5, 1.6)  # range of users / (users at the wall) in which levels move the formula


@dataclass(frozen=True, kw_only=True, slots=True)
class FormulaShift:
    """Two corrections of the KV-cache formula (docs/method.md), each with its standard error.

    - `preempted` is added to ln F. F is the number of preemptions per finished request.
    - `blocked` is added to logit eps. eps is the share of the time in which a request waits for blocks.
    """

    preempted: float = FORMULA_BIAS
    preempted_se: float = FORMULA_SD
    blocked: float = 0.0
    blocked_se: float = BLOCKED_SD
    levels: int = 0

    def widened(self, sd: float) -> "FormulaShift":
        """Returns this shift with `sd` added in quadrature to both standard errors, to serve as a prior."""
        return replace(
            self,
            preempted_se=math.hypot(self.preempted_se, sd),
            blocked_se=math.hypot(self.blocked_se, sd),
            levels=0,
        )


def kv_margins(pressure: Pressure, slo: Slo, *, shift: FormulaShift) -> tuple[float, float]:
    """Returns two numbers: by how much the corrected formula exceeds each limit; negative if it is below.

    - Preemptions per finished request (F): ln(F) - ln(limit on F), plus the shift of F.
    - Share of blocked time (eps): logit(eps) - logit(limit on eps), plus the shift of eps.
    """
    preempted = math.log(max(pressure.preempted, SMALLEST) / slo.preempted_fraction) + shift.preempted
    blocked = min(max(pressure.blocked, SMALLEST), 1.0 - SMALLEST)
    return preempted, logit(blocked) - logit(slo.kv_blocked_fraction) + shift.blocked


def kv_wall_users(occupancy: Occupancy, slo: Slo, *, shift: FormulaShift, start: int) -> float:
    """Returns the number of users, real-valued, at which a limit of `slo` on KV-cache pressure is reached.

    There are two limits: on preemptions per finished request, and on the share of blocked time. N is the
    largest whole number of users within both. The result is interpolated between N and N + 1. It is 0 if a
    single user exceeds a limit, and FAR_USERS if so many are still within both: the limits allow anything.
    start: a guess of the result, which only saves time.
    """

    def margin(users: int) -> float:
        return max(kv_margins(occupancy.at(users), slo, shift=shift))

    last = _last_that_holds(margin, start)
    if last in (0, FAR_USERS):
        return float(last)
    here = kv_margins(occupancy.at(last), slo, shift=shift)
    above = kv_margins(occupancy.at(last + 1), slo, shift=shift)
    crossed = [low / (low - high) for low, high in zip(here, above, strict=True) if high > 0.0]
    return last + min(crossed)


def _last_that_holds(margin: Callable[[int], float], start: int) -> int:
    """Returns the largest N up to FAR_USERS whose margin is not positive; 0 if there is none. The margin must
    rise with N."""
    first = max(start // 16, 1)  # a guess is often a few per cent off
    low, high, step = 0, min(max(start, 1), FAR_USERS), first
    while margin(high) <= 0.0:
        if high == FAR_USERS:
            return FAR_USERS
        low, high, step = high, min(high + step, FAR_USERS), 2 * step
    step = first
    while low == 0 and high > 1:
        probe = max(high - step, 1)
        if margin(probe) > 0.0:
            high, step = probe, 2 * step
        else:
            low = probe
    if not low:
        return 0
    # Margins are nearly linear in N, but not always: the straight line between both ends says where to look,
    # with half the margin of an end that stays (Illinois method), and every third look is in the middle.
    below, above, looks, moved = margin(low), margin(high), 0, 0
    while high - low > 1:
        looks += 1
        share = below / (below - above) if looks % 3 else 0.5
        probe = min(max(round(low + (high - low) * share), low + 1), high - 1)
        found = margin(probe)
        if found > 0.0:
            high, above, below, moved = probe, found, below / 2 if moved > 0 else below, 1
        else:
            low, below, above, moved = probe, found, above / 2 if moved < 0 else above, -1
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelPressure:
    """Preemptions and share of blocked time, in one measured level or one replay. Unknown values are nan."""

    users: int
    preemptions: float
    finished: int
    blocked: float
    scrapes: float
    """Effective number of scrapes from which `blocked` is known."""


def measured_pressure(levels: Sequence[Level]) -> list[LevelPressure]:
    """Returns the preemptions and the blocked time of each level that the formula may be compared with.

    Levels that are not trusted, and levels in which requests waited for `max_num_seqs` slots, are left out.
    """
    return [
        LevelPressure(
            users=level.users,
            preemptions=level.server.preemptions,
            finished=level.requests.finished,
            blocked=level.server.blocked.fraction if level.server.blocked else math.nan,
            scrapes=level.server.blocked.effective if level.server.blocked else 0.0,
        )
        for level in levels
        if level.trusted and level.server.max_num_seqs is None
    ]


def measured_shift(
    occupancy: Occupancy, seen: Sequence[LevelPressure], slo: Slo, *, near_users: float, prior: FormulaShift
) -> FormulaShift:
    """Returns the shift estimated from the prior and the measurements at levels near `near_users` users.

    `near_users` is where the KV-cache limit is expected. A preemption count with mean mu is taken to have
    variance CLUSTERING mu + (drift mu)^2. The first term is for preemptions that come in clusters. In the
    second term, drift grows with distance from the limit, because the formula is less exact there.
    """
    near = [one for one in seen if NEAR[0] * near_users <= one.users <= NEAR[1] * near_users]
    counted = [one for one in near if one.finished and not math.isnan(one.preemptions)]
    timed = [one for one in near if one.scrapes > 0]
    preempted = _posterior(
        _preemption_score(occupancy, counted, slo), prior=prior.preempted, prior_sd=prior.preempted_se
    )
    blocked = _posterior(
        _blocked_score(occupancy, timed, slo), prior=prior.blocked, prior_sd=prior.blocked_se
    )
    return FormulaShift(
        preempted=preempted[0],
        preempted_se=preempted[1],
        blocked=blocked[0],
        blocked_se=blocked[1],
        levels=len({one.users for one in counted + timed}),
    )


Score = Callable[[float], tuple[float, float]]


def _preemption_score(occupancy: Occupancy, seen: Sequence[LevelPressure], slo: Slo) -> Score:
    formula = np.array([max(occupancy.at(one.users).preempted, SMALLEST) for one in seen])
    drift = DRIFT * np.abs(np.log(formula / slo.preempted_fraction))
    expected = formula * np.array([one.finished for one in seen])
    counted = np.array([one.preemptions for one in seen])

    def score(shift: float) -> tuple[float, float]:
        mean = expected * math.exp(shift)
        scale = CLUSTERING + drift**2 * mean
        return float(np.sum((counted - mean) / scale)), float(np.sum(mean / scale))

    return score


def _blocked_score(occupancy: Occupancy, seen: Sequence[LevelPressure], slo: Slo) -> Score:
    formula = special.logit(
        np.clip([occupancy.at(one.users).blocked for one in seen], SMALLEST, 1.0 - SMALLEST)
    )
    drift = DRIFT * np.abs(formula - logit(slo.kv_blocked_fraction))
    share = np.array([one.blocked for one in seen])
    scrapes = np.array([one.scrapes for one in seen])

    def score(shift: float) -> tuple[float, float]:
        mean = special.expit(formula + shift)
        spread = scrapes * mean * (1.0 - mean)
        scale = 1.0 + drift**2 * spread
        return float(np.sum(scrapes * (share - mean) / scale)), float(np.sum(spread / scale))

    return score


def _posterior(score: Score, *, prior: float, prior_sd: float) -> tuple[float, float]:
    """Returns the most probable shift, given prior and measurements, and its standard error.

    The method is Fisher scoring inside an interval that contains the solution. The sign of the score shows
    which end of the interval can be moved. If a scoring step would leave the interval, the next shift is the
    middle of the interval.
    """
    low, high, at = prior - 8.0 * prior_sd, prior + 8.0 * prior_sd, prior
    for _ in range(40):
        slope, information = score(at)
        slope -= (at - prior) / prior_sd**2
        information += prior_sd**-2
        low, high = (at, high) if slope > 0.0 else (low, at)
        step = slope / information
        if abs(step) < 1e-4 * prior_sd:
            break
        at = at + step if low < at + step < high else (low + high) / 2
    return at, 1.0 / math.sqrt(information)
