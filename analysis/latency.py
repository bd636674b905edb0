"""Step time, knee, and the walls that latency, throughput, seats and errors make."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
from scipy import optimize, special, stats

from analysis.levels import QUEUE_LIMIT, Level
from analysis.metrics import ttft_s
from analysis.reading.rows import Floats
from analysis.reading.runs import Run
from analysis.statistics.samples import Share, student

MISS_LIMIT = 0.05  # a p95 objective: at most 5 % of requests may miss it
OVERLOAD_LIMIT = 0.01
STEEPEST = 300.0  # slope of attainment in ln users; a cliff between two levels has no finite one
GRID = 401
ALIKE, ALIKE_APART = 3, 4 / 3  # numbers of users, so far apart, whose queues left equally many running: a cap
PAUSE_CV = 1.0  # of think times, as of an exponential law: what their mean over n requests is off by
FALL = 0.02  # a fall of output throughput below this is not worth a wall, however sure


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """tau = base + per_sequence * n: a step of n sequences, prefill riding along; X = N/(a + beta N)."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long a step takes: base + per_sequence * n + prefill * prompt tokens that it computes."""

    step_base_s: float
    step_per_seq_s: float
    prefill_per_token_s: float | None
    """None where it is not sure; its share is then in `step_per_seq_s`."""
    knee: float

    def of_one(self, engines: int) -> "Pace":
        """The same for the sequences of one of so many equal engines."""
        return replace(self, step_per_seq_s=self.step_per_seq_s * engines)


def pace_of(
    runs: Sequence[Run], levels: Sequence[Level], *, uncached_prompt: float, output: float
) -> Pace | None:
    """From X(N) and from TTFT against prompt lengths; means in tokens of a request. None where X(N) is not
    known at two loads."""
    step = step_time(levels)
    if step is None:
        return None
    prefill = prefill_per_token_s(runs, levels)
    if prefill is not None:
        # What waits for other prompts looks like prefill of its own; all prefill is in beta.
        prefill = min(prefill, step.per_sequence_s * output / max(uncached_prompt, 1.0))
    riding = prefill * uncached_prompt / output if prefill is not None else 0.0
    return Pace(
        step_base_s=step.base_s,
        step_per_seq_s=step.per_sequence_s - riding,
        prefill_per_token_s=prefill,
        knee=step.knee,
    )


def _is_free(level: Level) -> bool:
    """A trusted level in which hardly anybody waited for blocks (where that is not known, for anything), nor,
    as far as running shows, for seats."""
    waited = level.blocked.fraction if level.blocked else level.waiting_fraction
    return level.trusted and level.most_running is None and not waited > 0.1


def step_time(levels: Sequence[Level]) -> StepTime | None:
    """Least squares of n/X on n over trusted levels with free seats and blocks; needs two loads."""
    free = [level for level in levels if _is_free(level) and level.output_tok_s > 0]
    if len({level.users for level in free}) < 2:
        return None
    n = np.array([level.in_flight for level in free])
    x = np.array([level.output_tok_s for level in free])
    error = np.array([max(level.output_tok_se / level.output_tok_s, 0.01) for level in free]) * n / x
    design = np.column_stack([np.ones(len(n)), n]) / error[:, None]
    (base, slope), _ = optimize.nnls(design, n / x / error)
    return StepTime(base_s=float(base), per_sequence_s=float(slope)) if base > 0 else None


def prefill_per_token_s(runs: Sequence[Run], levels: Sequence[Level]) -> float | None:
    """Slope of TTFT on uncached prompt tokens, of as few of the lowest loads as make it sure; None where none
    do."""
    free = [level for level in levels if _is_free(level)]
    for most in sorted({level.users for level in free}):
        prompt, ttft = _first_tokens(runs, [level for level in free if level.users <= most])
        if len(prompt) < 30 or np.ptp(prompt) == 0:
            continue
        fit = stats.linregress(prompt, ttft)
        if fit.slope > 4.0 * fit.stderr:
            return float(fit.slope)
    return None


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

    The fit is local: levels within about a factor two of the bracket that isotonic regression finds. The
    bounds are those of the profile likelihood in x, on effective sample sizes, widened by lack of fit and by
    Student's t for the design effect, which is estimated.
    """
    known = [level for level in levels if level.trusted and share_of(level).n > 0]
    if not known:
        return None
    known.sort(key=lambda level: level.users)
    users = np.array([level.users for level in known], dtype=np.float64)
    fraction = np.array([share_of(level).fraction for level in known])
    requests = np.array([share_of(level).n for level in known], dtype=np.float64)
    bracket = _bracket(users, fraction, requests, limit)
    if bracket is None:
        return None
    near = (users >= bracket[0] / 2.1) & (users <= bracket[1] * 1.6)
    # One design effect for all of them: a level of its own seems the surer the fewer misses it happens to
    # have, and weights by that would pull the crossing up.
    effect = np.array([share_of(level).effect for level in known])[near]
    weight = np.array([level.clock.batches for level in known], dtype=np.float64)[near] - 1.0
    freedom = float(weight @ effect) ** 2 / float(weight @ effect**2)  # Satterthwaite
    effective = requests[near] / float(np.average(effect, weights=weight))
    return _fit(users[near], fraction[near], effective, freedom, limit, bracket)


def p95_crossing(
    levels: Sequence[Level],
    share_of: Callable[[Level], Share],
    p95_of: Callable[[Level], float | None],
    *,
    objective_s: float,
) -> Crossing | None:
    """The same for a p95 objective, the point taken from the p95 itself: straight in ln users and ln seconds
    between the last level that held and the first that broke. Shares of 0 and 1 say nothing of where between
    two levels the crossing lies; the p95 does. The bounds stay those of the shares.
    """
    crossing = miss_crossing(levels, share_of, limit=MISS_LIMIT)
    if crossing is None:
        return None
    last, first = (_p95_at(levels, users, p95_of) for users in crossing.between)
    if last is None or first is None or not last <= objective_s < first:
        return crossing
    part = math.log(objective_s / last) / math.log(first / last)
    low, high = crossing.bound(0.05)
    x = min(max(crossing.between[0] * (crossing.between[1] / crossing.between[0]) ** part, low), high)

    def bound(error: float) -> tuple[float, float]:
        low, high = crossing.bound(error)
        return min(low, x), max(high, x)

    return replace(crossing, x=x, bound=bound)


def _p95_at(levels: Sequence[Level], users: int, p95_of: Callable[[Level], float | None]) -> float | None:
    """Mean p95 of the trusted levels of so many users; None where one has too few requests to say."""
    found = [p95_of(level) for level in levels if level.trusted and level.users == users]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _bracket(users: Floats, fraction: Floats, requests: Floats, limit: float) -> tuple[int, int] | None:
    """Last level that held and first that broke, by isotonic regression; None when none broke."""
    smooth = optimize.isotonic_regression(fraction, weights=requests).x
    broke = np.flatnonzero(smooth > limit)
    if not len(broke):
        return None
    held = users[users < users[broke[0]]]
    return int(held[-1]) if len(held) else 0, int(users[broke[0]])


def _fit(
    users: Floats,
    fraction: Floats,
    effective: Floats,
    freedom: float,
    limit: float,
    bracket: tuple[int, int],
) -> Crossing:
    low, high = math.log(max(bracket[0], 0.5) / 2.0), math.log(bracket[1] * 2.0)
    grid = np.linspace(low, high, GRID)
    missed, met = fraction * effective, (1.0 - fraction) * effective
    profile = _profile(np.log(users), missed, met, grid, offset=float(special.logit(limit)))
    saturated = -2.0 * float(np.sum(special.xlogy(missed, fraction) + special.xlogy(met, 1.0 - fraction)))
    spare = len(users) - 2
    spread = max((float(profile.min()) - saturated) / spare, 1.0) if spare > 0 else 1.0
    excess = (profile - profile.min()) / spread

    def bound(error: float) -> tuple[float, float]:
        ends = _ends(grid, excess, float(stats.t.ppf(error, freedom)) ** 2)
        return math.exp(ends[0]), math.exp(ends[1])

    # A cliff leaves the profile flat between two levels: take the middle of what is equally likely.
    return Crossing(x=math.exp(sum(_ends(grid, excess, 0.1)) / 2), bound=bound, between=bracket)


def _profile(place: Floats, missed: Floats, met: Floats, grid: Floats, *, offset: float) -> Floats:
    """Twice the negative log likelihood of the best slope, were the limit crossed at each grid point.

    place and grid: ln users. place, missed, met: shape (levels,); grid and result: shape (g,). The score
    rises in the slope, so halving finds it.
    """
    away = place[None, :] - grid[:, None]
    low, high = np.full(len(grid), math.log(0.05)), np.full(len(grid), math.log(STEEPEST))
    for _ in range(40):
        middle = (low + high) / 2
        share = special.expit(offset + np.exp(middle)[:, None] * away)
        rising = np.sum(((missed + met) * share - missed) * away, axis=1) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    eta = offset + np.exp(low)[:, None] * away
    return np.asarray(-2.0 * (special.log_expit(eta) @ missed + special.log_expit(-eta) @ met))


def _ends(grid: Floats, excess: Floats, height: float) -> tuple[float, float]:
    """Where a profile that falls and rises passes a height on either side, straight between grid points."""
    inside = np.flatnonzero(excess <= height)
    first, last = int(inside[0]), int(inside[-1])
    left, right = float(grid[first]), float(grid[last])
    if first > 0:
        left = float(np.interp(-height, -excess[first - 1 : first + 1], grid[first - 1 : first + 1]))
    if last < len(grid) - 1:
        right = float(np.interp(height, excess[last : last + 2], grid[last : last + 2]))
    return left, right


def throughput_fall(levels: Sequence[Level]) -> tuple[int, int] | None:
    """The users after which measured output throughput falls, and the next level's; None where it never does.

    Trusted levels of equal users are pooled. A fall is at least 2 %, one-sided significant at 1 % over all
    neighbours together, by batch errors, and no higher level comes back.
    """
    trusted = sorted((level for level in levels if level.trusted), key=lambda level: level.users)
    known = [_Rate.of(list(same)) for _, same in groupby(trusted, key=lambda level: level.users)]
    for place, (here, after) in enumerate(pairwise(known)):
        drop = here.tok_s - after.tok_s
        error = math.hypot(here.se, after.se)
        sure = student(min(here.batches, after.batches), one_sided=1.0 - 0.01 / (len(known) - 1))
        falls = drop > FALL * here.tok_s and drop > sure * error
        if falls and max(one.tok_s for one in known[place + 1 :]) < (1.0 - FALL) * here.tok_s:
            return here.users, after.users
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rate:
    """Output throughput of so many users."""

    users: int
    tok_s: float
    se: float
    batches: int

    @classmethod
    def of(cls, levels: Sequence[Level]) -> "_Rate":
        window = np.array([level.clock.window_s for level in levels])
        share = window / window.sum()
        return cls(
            users=levels[0].users,
            tok_s=float(share @ [level.output_tok_s for level in levels]),
            se=math.sqrt(float(share**2 @ [level.output_tok_se**2 for level in levels])),
            batches=min(level.clock.batches for level in levels),
        )


def seats_of(levels: Sequence[Level], *, stated: int | None) -> int | None:
    """max_num_seqs: as stated, else where a trusted level stood flat at it with a queue, or where three
    numbers of users, a third apart, left equally many running, with queues and room."""
    if stated is not None:
        return stated
    trusted = [level for level in levels if level.trusted]
    seen = [level.seats for level in trusted if level.seats is not None]
    if seen:
        return min(seen)
    alike = {level.users: level.most_running for level in trusted if level.most_running is not None}
    if len(alike) < ALIKE or max(alike) < ALIKE_APART * min(alike) or len(set(alike.values())) > 1:
        return None
    return next(iter(alike.values()))


def seats_wall(seats: int, *, active: Callable[[int], float], queue_limit: float = QUEUE_LIMIT) -> float:
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
    think_error: float = 0.0
    """Standard error of ln think_s."""

    def of_one(self, engines: int) -> "Thinking":
        """The same for users of one of so many equal engines: response times grow with all of them."""
        return replace(self, slope_s=self.slope_s * engines)

    def drawn(self, rng: np.random.Generator) -> "Thinking":
        """The same with a think time that the data would also allow."""
        return replace(self, think_s=self.think_s * math.exp(self.think_error * rng.standard_normal()))

    def active(self, users: int) -> float:
        """p = R/(R + Z), with R at p N in flight: the fixed point, by its quadratic. 0 to 1."""
        # n = N R/(R + Z), R = idle + slope n  ->  slope n^2 + (idle + Z - N slope) n - N idle = 0
        linear = self.idle_s + self.think_s - users * self.slope_s
        if self.slope_s <= 0:
            return self.idle_s / (self.idle_s + self.think_s)
        root = math.sqrt(linear**2 + 4.0 * self.slope_s * users * self.idle_s)
        return (root - linear) / (2.0 * self.slope_s) / users


def thinking_of(levels: Sequence[Level]) -> Thinking | None:
    """Z by Little's law, which holds at any load, and R against requests in flight, from trusted levels with
    free seats and blocks where there are any."""
    known = [level for level in levels if level.trusted and level.in_flight > 0 and level.n > level.errors]
    if not known:
        return None
    free = [level for level in known if _is_free(level)] or known
    n, life, weight = (
        np.array([getattr(level, name) for level in free], dtype=np.float64)
        for name in ("in_flight", "e2e_mean_s", "n")
    )
    root = np.sqrt(weight)
    (idle, slope), _ = optimize.nnls(np.column_stack([root, root * n]), root * life)
    requests = np.array([level.n for level in known], dtype=np.float64)
    think = [level.e2e_mean_s * (level.users / level.in_flight - 1.0) for level in known]
    return Thinking(
        think_s=max(float(np.average(think, weights=requests)), 0.0),
        idle_s=float(idle),
        slope_s=float(slope),
        think_error=PAUSE_CV / math.sqrt(float(requests.sum())),
    )
