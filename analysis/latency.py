"""Step time, knee, and the walls that latency, throughput, seats and errors make."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from analysis.levels import Level
from analysis.load import Floats, Run
from analysis.metrics import ttft_s
from analysis.stats import Share, student

MISS_LIMIT = 0.05  # a p95 objective: at most 5 % of requests may miss it
OVERLOAD_LIMIT = 0.01
STEEPEST = 60.0  # slope of attainment in ln users; a cliff between two levels has no finite one
FALL = 0.02  # a fall of output throughput below this is not worth a wall, however sure


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """tau = base + per_sequence * n: the engine's step with n sequences, prefill riding along (X = N/(a + beta N))."""

    base_s: float
    per_sequence_s: float
    """beta = b + c mu + d E[uncached prompt]/E[o]: one length mix tells only their sum."""

    @property
    def knee(self) -> float:
        """Sequences at which X reaches 90 % of its limit 1/beta."""
        return 9.0 * self.base_s / self.per_sequence_s if self.per_sequence_s > 0 else math.inf

    def output_tok_s(self, sequences: float) -> float:
        """X(N)."""
        return sequences / (self.base_s + self.per_sequence_s * sequences)


def step_time(levels: Sequence[Level]) -> StepTime | None:
    """Least squares of n/X on n over trusted levels in which hardly anybody waited; needs two different loads."""
    free = [
        level
        for level in levels
        if level.trusted
        and level.output_tok_s > 0
        and not level.waiting_fraction > 0.1
        and level.seats is None
    ]
    if len({level.users for level in free}) < 2:
        return None
    n = np.array([level.in_flight for level in free])
    x = np.array([level.output_tok_s for level in free])
    error = np.array([max(level.output_tok_se / level.output_tok_s, 0.01) for level in free]) * n / x
    design = np.column_stack([np.ones(len(n)), n]) / error[:, None]
    (base, slope), _ = optimize.nnls(design, n / x / error)
    return StepTime(base_s=float(base), per_sequence_s=float(slope)) if base > 0 else None


def prefill_per_token_s(runs: Sequence[Run], levels: Sequence[Level]) -> float | None:
    """Slope of TTFT on uncached prompt tokens at the lowest trusted load; None where it is not sure."""
    calm = [level for level in levels if level.trusted and not level.waiting_fraction > 0]
    if not calm:
        return None
    lowest = min(level.users for level in calm)
    prompt, ttft = _first_tokens(runs, [level for level in calm if level.users == lowest])
    if len(prompt) < 30 or np.ptp(prompt) == 0:
        return None
    fit = stats.linregress(prompt, ttft)
    return float(fit.slope) if fit.slope > 0 and fit.slope > 4.0 * fit.stderr else None


def _first_tokens(runs: Sequence[Run], levels: Sequence[Level]) -> tuple[Floats, Floats]:
    prompt, ttft = [], []
    for run in runs:
        rows = run.requests
        known = rows.ok & (rows.prompt_tokens >= 1)
        for level in levels:
            if level.run_id == run.info.run_id:
                inside = known & (rows.end_unix_s >= level.clock.begin_unix_s)
                inside &= rows.end_unix_s < level.clock.end_unix_s
                prompt.append((rows.prompt_tokens - np.nan_to_num(rows.cached_tokens))[inside])
                ttft.append(ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)[inside])
    return np.concatenate(prompt), np.concatenate(ttft)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Where a share of misses passes its limit, real-valued users, with one-sided bounds at any level."""

    x: float
    bound: Callable[[float], tuple[float, float]]
    """One-sided error -> (lower, upper) bound on x."""
    between: tuple[int, int]
    """The last level that held and the first that broke; (0, first) when none held."""


def miss_crossing(
    levels: Sequence[Level], share_of: Callable[[Level], Share], *, limit: float
) -> Crossing | None:
    """Crossing of an overdispersed logistic of the misses in ln users; None when no trusted level broke.

    The fit is local: levels within about a factor two of the bracket that isotonic regression finds. The bounds are
    those of the profile likelihood in x, on effective sample sizes, widened by lack of fit.
    """
    known = [level for level in levels if level.trusted and share_of(level).n > 0]
    if not known:
        return None
    users = np.array([level.users for level in known], dtype=np.float64)
    fraction = np.array([share_of(level).fraction for level in known])
    effective = np.array([share_of(level).effective for level in known])
    order = np.argsort(users, kind="stable")
    users, fraction, effective = users[order], fraction[order], effective[order]
    bracket = _bracket(users, fraction, effective, limit)
    if bracket is None:
        return None
    last, first = bracket
    near = (users >= last / 2.1) & (users <= first * 1.6)
    return _fit(users[near], fraction[near], effective[near], limit, bracket)


def _bracket(users: Floats, fraction: Floats, effective: Floats, limit: float) -> tuple[int, int] | None:
    """Last level that held and first that broke, by isotonic regression; None when none broke."""
    smooth = optimize.isotonic_regression(fraction, weights=effective).x
    broke = np.flatnonzero(smooth > limit)
    if not len(broke):
        return None
    held = users[users < users[broke[0]]]
    return int(held[-1]) if len(held) else 0, int(users[broke[0]])


def _fit(
    users: Floats, fraction: Floats, effective: Floats, limit: float, bracket: tuple[int, int]
) -> Crossing:
    place = np.log(users)
    missed, met = fraction * effective, (1.0 - fraction) * effective
    offset = float(special.logit(limit))

    def deviance(at: float) -> float:
        """Twice the negative log likelihood of the best slope, given where the limit is crossed (ln users)."""

        def cost(slope: float) -> float:
            eta = offset + slope * (place - at)
            return float(-2.0 * (missed @ special.log_expit(eta) + met @ special.log_expit(-eta)))

        best = optimize.minimize_scalar(cost, bounds=(0.05, STEEPEST), method="bounded")
        return float(best.fun)

    low, high = math.log(max(bracket[0], 0.5) / 2.0), math.log(bracket[1] * 2.0)
    grid = np.linspace(low, high, 241)
    profile = np.array([deviance(at) for at in grid])
    saturated = -2.0 * float(np.sum(special.xlogy(missed, fraction) + special.xlogy(met, 1.0 - fraction)))
    spread = max((float(profile.min()) - saturated) / max(len(users) - 2, 1), 1.0) if len(users) > 2 else 1.0
    best = _middle_of_minimum(grid, profile)

    def bound(error: float) -> tuple[float, float]:
        inside = grid[profile - profile.min() <= spread * float(stats.norm.ppf(error)) ** 2]
        return math.exp(float(inside[0])), math.exp(float(inside[-1]))

    return Crossing(x=math.exp(best), bound=bound, between=bracket)


def _middle_of_minimum(grid: Floats, profile: Floats) -> float:
    """A cliff leaves the profile flat between two levels: take the middle of what is equally likely."""
    flat = grid[profile <= profile.min() + 0.1]
    return float((flat[0] + flat[-1]) / 2)


def throughput_fall(levels: Sequence[Level]) -> tuple[int, int] | None:
    """The trusted level after which measured output throughput falls, and the next; None where it never does.

    A fall is one-sided significant at 1 % by batch errors, and at least 2 %.
    """
    known = sorted((level for level in levels if level.trusted), key=lambda level: level.users)
    for here, after in zip(known, known[1:], strict=False):
        if after.users == here.users:
            continue
        drop = here.output_tok_s - after.output_tok_s
        error = math.hypot(here.output_tok_se, after.output_tok_se)
        batches = min(here.clock.batches, after.clock.batches)
        if drop > FALL * here.output_tok_s and drop > student(batches, one_sided=0.99) * error:
            return here.users, after.users
    return None


def seats_of(levels: Sequence[Level], *, stated: int | None) -> int | None:
    """max_num_seqs: as stated, else where a trusted level stood flat at it with a queue."""
    if stated is not None:
        return stated
    seen = [level.seats for level in levels if level.trusted and level.seats is not None]
    return min(seen) if seen else None


def seats_wall(seats: int, *, active: Callable[[int], float], queue_limit: float = 0.1) -> float:
    """Users at which somebody waits for a seat 10 % of the time: the seats themselves unless users think.

    With thinking users, P(Binomial(N, p) > seats), straight in the logit between whole users.
    """
    if active(seats + 1) >= 1.0:
        return float(seats)
    users = seats
    while _queue(seats, users + 1, active) <= queue_limit:
        users += 1
    low, high = (_logit(_queue(seats, n, active)) - _logit(queue_limit) for n in (users, users + 1))
    return users + low / (low - high)


def _queue(seats: int, users: int, active: Callable[[int], float]) -> float:
    return float(stats.binom.sf(seats, users, active(users)))


def _logit(value: float) -> float:
    return float(special.logit(min(max(value, 1e-9), 1.0 - 1e-9)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """Users who think Z between requests that take R(n) = idle + slope * n with n in flight."""

    think_s: float
    idle_s: float
    slope_s: float

    def active(self, users: int) -> float:
        """p = R/(R + Z), with R at p N in flight: the fixed point, by its quadratic. 0 to 1."""
        # n = N R/(R + Z), R = idle + slope n  ->  slope n^2 + (idle + Z - N slope) n - N idle = 0
        linear = self.idle_s + self.think_s - users * self.slope_s
        if self.slope_s <= 0:
            return self.idle_s / (self.idle_s + self.think_s)
        root = math.sqrt(linear**2 + 4.0 * self.slope_s * users * self.idle_s)
        return (root - linear) / (2.0 * self.slope_s) / users


def thinking_of(levels: Sequence[Level]) -> Thinking | None:
    """Z by Little's law and R against requests in flight, from trusted levels in which hardly anybody waited."""
    free = [
        level
        for level in levels
        if level.trusted
        and level.in_flight > 0
        and not level.waiting_fraction > 0.1
        and level.n > level.errors
    ]
    if not free:
        return None
    n = np.array([level.in_flight for level in free])
    life = np.array([level.e2e_mean_s for level in free])
    think = np.array([level.e2e_mean_s * (level.users / level.in_flight - 1.0) for level in free])
    weight = np.array([level.n for level in free], dtype=np.float64)
    root = np.sqrt(weight)
    (idle, slope), _ = optimize.nnls(np.column_stack([root, root * n]), root * life)
    return Thinking(
        think_s=max(float(np.average(think, weights=weight)), 0.0), idle_s=float(idle), slope_s=float(slope)
    )
