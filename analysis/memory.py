"""The memory wall: the exact law of KV blocks from (prompt, output) pairs, and what the server measured.

Formulas: docs/method.md. All lengths are in engine steps, so that the GPU and its speed cancel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from analysis.latency import Pace, Thinking
from analysis.levels import Level, Pool
from analysis.reading.rows import Floats, Ints, Requests
from analysis.reading.runs import Run
from analysis.virtual import TURN_ROUND_S, Chatting, Service, play
from loadtest.record import Slo
from loadtest.simulator.figures import EngineConfig

SMALLEST = 1e-9
FORMULA_BIAS, FORMULA_SD = -0.12, 0.35  # ln(true F / formula) at the wall: 110 random workloads, engine
BLOCKED_SD = 0.3  # the same for the logit of the blocked time
REPLAY_TOKENS = 2e6  # output tokens of the engine's replay: about a second
REPLAY_LIVES = 60  # of each user in it, at least
REPLAY_USERS = 300  # above, the formula's error is below one in a hundred users
REPLAY_ROUNDS, REPLAY_NEAR = 3, 0.02  # again where it moved the wall by more than a user, or than this share
REPLAY_PAIRS = 20_000  # drawn from, at most
BATCHED_TOKENS = 2048  # max_num_batched_tokens: vLLM's server default below 70 GiB
REPLAY_SD = 0.1  # what may be left between the engine and a real scheduler, in ln F and logit eps
CLUSTERING = 6.0  # variance over mean of preemption counts: 1.5 to 6 were seen
DRIFT = 0.1  # how much the formula's error changes with each factor e of F away from the wall
GRAIN_USERS, GRAIN_SHARE = 0.1, 0.005  # standard error, the larger: the curve between whole users, the replay
NEAR = (0.5, 1.6)  # levels this near the wall, as a factor, may move the formula


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pairs:
    """Lengths of finished requests, shape (n,). They do not depend on load, so every level is pooled."""

    prompt: Ints
    output: Ints
    conversation: Ints
    """Requests of one conversation are resampled together."""
    shared_prefix: int = 0
    """Tokens that every prompt begins with and that the cache holds once."""

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockLaw:
    """Index k = 0..K: blocks."""

    held: Floats
    """pi: share of its steps in which a request holds k blocks."""
    growth: Floats
    """G: mean number of growths k -> k + 1 in a life."""
    entry: Floats
    """kappa: law of the prompt's blocks."""
    steps: float
    """E[o]: steps of a life."""

    @property
    def mean(self) -> float:
        """Blocks of one request, over its steps."""
        return float(self.held @ np.arange(len(self.held)))

    @property
    def sd(self) -> float:
        """Blocks."""
        place = np.arange(len(self.held))
        return math.sqrt(max(float(self.held @ place**2) - self.mean**2, 0.0))

    @property
    def q(self) -> float:
        """Decode growth over prompt, G / E[kappa]. Below 0.01 nobody is ever preempted."""
        return float(self.growth.sum() / (self.entry @ np.arange(len(self.entry))))


def block_law(pairs: Pairs, *, block_tokens: int, weight: Floats | None = None) -> BlockLaw:
    """The law of ceil((s + j) / b) over steps j = 0..o-1. weight: shape (n,), how often each pair counts.

    Shared whole blocks are taken off every prompt.
    """
    shared = pairs.shared_prefix // block_tokens * block_tokens
    prompt = np.maximum(pairs.prompt - shared, 1)
    top = int((prompt + pairs.output).max()) // block_tokens + 2
    steps = np.bincount(prompt, weight, top * block_tokens + 1) - np.bincount(
        prompt + pairs.output, weight, top * block_tokens + 1
    )
    at_length = np.cumsum(steps)[1:]  # how many steps have exactly x = 1, 2, ... tokens
    held = np.concatenate([[0.0], at_length.reshape(top, block_tokens).sum(axis=1)])
    first = -(-prompt // block_tokens)
    last = -(-(prompt + pairs.output - 1) // block_tokens)
    lives = float(len(pairs) if weight is None else weight.sum())
    starts = np.bincount(first, weight, top + 1)
    growth = np.cumsum(starts - np.bincount(last, weight, top + 1))
    return BlockLaw(
        held=held / held.sum(),
        growth=np.maximum(growth, 0.0) / lives,
        entry=starts / lives,
        steps=float(held.sum()) / lives,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressure:
    """What N users do to the pool."""

    preempted: float
    """F(N): preemptions per finished request."""
    blocked: float
    """eps(N): share of time in which a request waits for blocks."""


Active = Callable[[int], float]


def always(_: int) -> float:
    """Users who never think: each is in flight all the time."""
    return 1.0


class Occupancy:
    """F(N) = sum_k G_k p_{N-1}(C - k) + (q/2) W(N), eps(N) = P(B_N > C); p_n: the n-fold convolution of pi.

    `active(N)` is the share of time in which a user is in flight. Of that the user holds blocks in o of o + 1
    steps: when the step begins that is without its last request, its next one is not there yet. The rest is
    an atom at no blocks.
    """

    def __init__(self, law: BlockLaw, blocks: int, active: Active = always) -> None:
        self._law, self._blocks, self._active = law, blocks, active
        size = fft.next_fast_len(3 * (blocks + 1), real=True)  # twice the wall must not wrap round
        self._size = size
        self._held = fft.rfft(_folded(law.held, size), size)
        top = min(len(law.held), blocks + 1)
        self._held_now, self._growth, self._entry = law.held[:top], law.growth[:top], law.entry[:top]
        self._half_q = law.q / 2
        self._known: dict[int, Pressure] = {}

    def at(self, users: int) -> Pressure:
        """Pressure of so many users, 1 or more."""
        if users not in self._known:
            self._known[users] = self._pressure(users)
        return self._known[users]

    def _pressure(self, users: int) -> Pressure:
        p = self._active(users) * self._law.steps / (self._law.steps + 1.0)
        others = fft.irfft(self._power(p, users - 1), self._size)[: self._blocks + 1]
        fits = np.cumsum(others)[::-1][: len(self._entry)]  # P(B_{N-1} <= C - k)
        full = others[::-1][: len(self._growth)]  # p_{N-1}(C - k)
        waits = 1.0 - float(self._entry @ fits)
        mine = (1.0 - p) * float(fits[0]) + p * float(self._held_now @ fits)
        return Pressure(
            preempted=max(float(self._growth @ full) + self._half_q * waits, 0.0),
            blocked=min(max(1.0 - mine, 0.0), 1.0),
        )

    def _power(self, p: float, times: int) -> NDArray[np.complex128]:
        """Transform of the law of so many users, by squaring: several times faster than `**`."""
        square = 1.0 - p + p * self._held
        power = np.ones_like(square)
        while times:
            if times & 1:
                power = power * square
            times >>= 1
            if times:
                square = square * square
        return power


def _folded(held: Floats, size: int) -> Floats:
    """A law longer than the transform ends in its last cell: such a request never fits anyway."""
    if len(held) <= size:
        return held
    return np.append(held[: size - 1], held[size - 1 :].sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """How far measured levels move the formula: ln of F, logit of eps, each with its standard error."""

    preempted: float = FORMULA_BIAS
    preempted_se: float = FORMULA_SD
    blocked: float = 0.0
    blocked_se: float = BLOCKED_SD
    levels: int = 0

    def widened(self, sd: float) -> "Shift":
        """The same as a prior, with more of an error."""
        return replace(
            self,
            preempted_se=math.hypot(self.preempted_se, sd),
            blocked_se=math.hypot(self.blocked_se, sd),
            levels=0,
        )


def margins(pressure: Pressure, slo: Slo, *, shift: Shift) -> tuple[float, float]:
    """Positive: broken. ln(F / limit) and logit(eps) - logit(limit), moved by the shift."""
    preempted = math.log(max(pressure.preempted, SMALLEST) / slo.preempted_fraction) + shift.preempted
    blocked = min(max(pressure.blocked, SMALLEST), 1.0 - SMALLEST)
    return preempted, _logit(blocked) - _logit(slo.kv_blocked_fraction) + shift.blocked


def _logit(share: float) -> float:
    return math.log(share / (1.0 - share))


def wall(occupancy: Occupancy, slo: Slo, *, shift: Shift, start: int) -> float:
    """Real-valued users x at which the first of the two limits is crossed; 0 when one user does not fit.

    x lies between the last N that holds and N + 1, straight in ln F and logit eps. `start` only saves time.
    """

    def margin(users: int) -> float:
        return max(margins(occupancy.at(users), slo, shift=shift))

    last = _last_that_holds(margin, start)
    if last == 0:
        return 0.0
    here = margins(occupancy.at(last), slo, shift=shift)
    above = margins(occupancy.at(last + 1), slo, shift=shift)
    crossed = [low / (low - high) for low, high in zip(here, above, strict=True) if high > 0.0]
    return last + min(crossed)


def _last_that_holds(margin: Callable[[int], float], start: int) -> int:
    """Largest N whose margin is not positive, 0 when already one user is too many. margin: rising in N."""
    low, high, step = 0, max(start, 1), 1
    while margin(high) <= 0.0:
        low, high, step = high, high + step, 2 * step
    step = 1
    while low == 0 and high > 1:
        probe = max(high - step, 1)
        if margin(probe) > 0.0:
            high, step = probe, 2 * step
        else:
            low = probe
    straight = True
    while low and high - low > 1:
        below, above = margin(low), margin(high)
        share = below / (below - above) if straight else 0.5  # margins are nearly, not always, straight in N
        straight = not straight
        probe = min(max(round(low + (high - low) * share), low + 1), high - 1)
        low, high = (low, probe) if margin(probe) > 0.0 else (probe, high)
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What one trusted level measured of the pool's pressure. nan where unknown."""

    users: int
    preemptions: float
    finished: int
    blocked: float
    scrapes: float
    """Effective number of scrapes behind `blocked`."""


def pressure_seen(levels: Sequence[Level], *, seats: int | None = None) -> list[Seen]:
    """Of trusted levels whose queue, if any, was not for seats: where these are known, for so many."""
    return [
        Seen(
            users=level.users,
            preemptions=level.preemptions,
            finished=level.finished,
            blocked=level.blocked.fraction if level.blocked else math.nan,
            scrapes=level.blocked.effective if level.blocked else 0.0,
        )
        for level in levels
        if level.trusted and level.seats is None and (seats is None or level.most_running != seats)
    ]


def shift_of(
    occupancy: Occupancy, seen: Sequence[Seen], slo: Slo, *, near_users: float, prior: Shift
) -> Shift:
    """The prior, moved by what was counted at levels near the wall, as far as the counts carry.

    Counts have variance D mu + (drift mu)^2, D for clustering and the drift for the formula's shape.
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
    return Shift(
        preempted=preempted[0],
        preempted_se=preempted[1],
        blocked=blocked[0],
        blocked_se=blocked[1],
        levels=len({one.users for one in counted + timed}),
    )


def replayed(
    pairs: Pairs,
    pool: Pool,
    occupancy: Occupancy,
    slo: Slo,
    *,
    pace: Pace | None = None,
    thinking: Thinking | None = None,
    x: float,
) -> Shift:
    """How far the engine moves the formula, run on the measured pairs at the two whole numbers of users that
    hold the wall between them: first by the formula, then, where that was far off, by the engine."""
    for _ in range(REPLAY_ROUNDS):
        if not 1.0 <= x <= REPLAY_USERS:
            return Shift()
        low = math.floor(x)
        seen = [_replay(pairs, pool, users, pace, thinking) for users in (low, low + 1)]
        shift = shift_of(occupancy, seen, slo, near_users=x, prior=Shift(preempted_se=1.0, blocked_se=1.0))
        moved = wall(occupancy, slo, shift=shift, start=low)
        if abs(moved - x) <= max(1.0, REPLAY_NEAR * x):
            break
        x = moved
    return shift.widened(REPLAY_SD)


def _replay(pairs: Pairs, pool: Pool, users: int, pace: Pace | None, thinking: Thinking | None) -> Seen:
    """Without a pace every step takes one second, and pauses are so much longer. They are exponential: how
    their lengths are spread hardly matters."""
    output = float(pairs.output.mean())
    requests = max(int(REPLAY_TOKENS / 2 / output), REPLAY_LIVES * users)
    pause_s = thinking.think_s if thinking else 0.0
    if thinking and pace is None:
        pause_s = output * (1.0 / thinking.active(users) - 1.0)
    longest = int((pairs.prompt + pairs.output).max())
    every = -(-len(pairs) // REPLAY_PAIRS)
    service = Service(
        engine=EngineConfig(
            num_gpu_blocks=1 + max(pool.blocks, -(-longest // pool.block_tokens)),
            block_size=pool.block_tokens,
            max_model_len=longest,
            max_num_seqs=users,
            max_num_batched_tokens=max(BATCHED_TOKENS, users),
            step_base_s=pace.step_base_s if pace else 1.0,
            step_per_seq_s=pace.step_per_seq_s if pace else 0.0,
            prefill_per_token_s=(pace.prefill_per_token_s or 0.0) if pace else 0.0,
            enable_prefix_caching=pairs.shared_prefix > 0,
        ),
        chatting=Chatting(
            conversations=[
                [(int(s), int(o))] for s, o in zip(pairs.prompt[::every], pairs.output[::every], strict=True)
            ],
            pauses_s=TURN_ROUND_S - pause_s * np.log1p(-(np.arange(1000) + 0.5) / 1000),
            shared_prefix_tokens=pairs.shared_prefix,
        ),
    )
    seen = play(service, users, requests=requests).seen(Slo())
    return Seen(
        users=users,
        preemptions=seen.preempted_fraction * seen.requests,
        finished=seen.requests,
        blocked=seen.blocked_fraction,
        scrapes=seen.requests / users,  # what is a lifetime apart is independent
    )


Score = Callable[[float], tuple[float, float]]


def _preemption_score(occupancy: Occupancy, seen: Sequence[Seen], slo: Slo) -> Score:
    formula = np.array([max(occupancy.at(one.users).preempted, SMALLEST) for one in seen])
    drift = DRIFT * np.abs(np.log(formula / slo.preempted_fraction))
    expected = formula * np.array([one.finished for one in seen])
    counted = np.array([one.preemptions for one in seen])

    def score(shift: float) -> tuple[float, float]:
        mean = expected * math.exp(shift)
        scale = CLUSTERING + drift**2 * mean
        return float(np.sum((counted - mean) / scale)), float(np.sum(mean / scale))

    return score


def _blocked_score(occupancy: Occupancy, seen: Sequence[Seen], slo: Slo) -> Score:
    formula = special.logit(
        np.clip([occupancy.at(one.users).blocked for one in seen], SMALLEST, 1.0 - SMALLEST)
    )
    drift = DRIFT * np.abs(formula - _logit(slo.kv_blocked_fraction))
    share = np.array([one.blocked for one in seen])
    scrapes = np.array([one.scrapes for one in seen])

    def score(shift: float) -> tuple[float, float]:
        mean = special.expit(formula + shift)
        spread = scrapes * mean * (1.0 - mean)
        scale = 1.0 + drift**2 * spread
        return float(np.sum(scrapes * (share - mean) / scale)), float(np.sum(spread / scale))

    return score


def _posterior(score: Score, *, prior: float, prior_sd: float) -> tuple[float, float]:
    """Mode and standard error of a shift: Fisher scoring, kept inside the ends between which the score, which
    falls in the shift, has its root."""
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryWall:
    """The wall and its resampled draws, shape (resamples,), in users of all engines together."""

    x: float
    draws: Floats
    law: BlockLaw
    pool: Pool
    shift: Shift
    blocks: int
    """Of one engine, shared prefix taken off."""


def memory_wall(
    pairs: Pairs,
    pool: Pool,
    levels: Sequence[Level],
    slo: Slo,
    *,
    thinking: Thinking | None = None,
    pace: Pace | None = None,
    seats: int | None = None,
    replay: bool = True,
    resamples: int = 300,
    rng: np.random.Generator,
    on_step: Callable[[int], None] = lambda _: None,
) -> MemoryWall:
    """Where the pool stops holding, drawn from resampled conversations, the error of the think time, and the
    formula's own, which a replay in the engine, at the pace that was measured, makes smaller."""
    blocks = pool.blocks - pairs.shared_prefix // pool.block_tokens
    thinking = thinking.of_one(pool.engines) if thinking else None
    pace = pace.of_one(pool.engines) if pace else None
    seen = [_for_one_engine(one, pool.engines) for one in pressure_seen(levels, seats=seats)]

    law = block_law(pairs, block_tokens=pool.block_tokens)
    formula = Occupancy(law, blocks, active_of(thinking))
    start = max(int(blocks / max(law.mean, SMALLEST)), 1)
    rough = wall(formula, slo, shift=Shift(), start=start)
    prior = Shift()
    if replay:
        prior = replayed(pairs, pool, formula, slo, pace=pace, thinking=thinking, x=rough)

    def one(weight: Floats | None, thinking: Thinking | None, start: int) -> tuple[float, Shift, Occupancy]:
        law = block_law(pairs, block_tokens=pool.block_tokens, weight=weight)
        occupancy = Occupancy(law, blocks, active_of(thinking))
        rough = wall(occupancy, slo, shift=prior, start=start)
        shift = shift_of(occupancy, seen, slo, near_users=rough, prior=prior)
        return wall(occupancy, slo, shift=shift, start=max(int(rough), 1)), shift, occupancy

    x, shift, _ = one(None, thinking, max(int(rough), 1))
    draws = np.empty(resamples)
    for at in range(resamples):
        thought = thinking.drawn(rng) if thinking else None
        _, drawn, occupancy = one(_resampled(pairs.conversation, rng), thought, max(int(x), 1))
        moved = wall(occupancy, slo, shift=_jittered(drawn, rng), start=max(int(x), 1))
        draws[at] = max(moved + max(GRAIN_USERS, GRAIN_SHARE * moved) * rng.standard_normal(), 0.0)
        on_step(1)
    return MemoryWall(
        x=x * pool.engines, draws=draws * pool.engines, law=law, pool=pool, shift=shift, blocks=blocks
    )


def active_of(thinking: Thinking | None) -> Active:
    """Without a think time, each user is in flight all the time."""
    return thinking.active if thinking else always


def _for_one_engine(seen: Seen, engines: int) -> Seen:
    if engines == 1:
        return seen
    return Seen(
        users=max(round(seen.users / engines), 1),
        preemptions=seen.preemptions,
        finished=seen.finished,
        blocked=math.nan,
        scrapes=0.0,
    )


def _jittered(shift: Shift, rng: np.random.Generator) -> Shift:
    return Shift(
        preempted=shift.preempted + shift.preempted_se * rng.standard_normal(),
        blocked=shift.blocked + shift.blocked_se * rng.standard_normal(),
    )


def _resampled(conversation: Ints, rng: np.random.Generator) -> Floats:
    """How often each request counts in a resample of whole conversations, which are 0..k-1. Shape (n,)."""
    count = int(conversation.max()) + 1
    drawn = np.bincount(rng.integers(0, count, count), minlength=count)
    return drawn[conversation].astype(np.float64)


def pairs_of(runs: Sequence[Run], *, block_tokens: int) -> Pairs:
    """(prompt, output) of every finished request of these runs whose usage the server sent."""
    prompt, output, conversation, cached = [], [], [], []
    before = 0
    for run in runs:
        rows = run.requests
        chats = conversation_ids(rows)
        known = rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1)
        prompt.append(rows.prompt_tokens[known].astype(np.int64))
        output.append(rows.output_tokens[known].astype(np.int64))
        conversation.append(chats[known] + before)
        cached.append(rows.cached_tokens[known & (rows.turn == 0)])
        before += int(chats.max(initial=-1)) + 1
    _, chat = np.unique(np.concatenate(conversation), return_inverse=True)
    return Pairs(
        prompt=np.concatenate(prompt),
        output=np.concatenate(output),
        conversation=chat.astype(np.int64),
        shared_prefix=_shared_prefix(np.concatenate(cached), block_tokens),
    )


def conversation_ids(rows: Requests) -> Ints:
    """Which conversation each request belongs to, 0, 1, ...: a user's turns from one turn 0 to the next."""
    order = np.lexsort((rows.start_unix_s, rows.user))
    begins = (rows.turn[order] == 0) | (np.diff(rows.user[order], prepend=-1) != 0)
    chat = np.empty(len(rows), dtype=np.int64)
    chat[order] = np.cumsum(begins) - 1
    return chat


def _shared_prefix(cached: Floats, block_tokens: int) -> int:
    """Whole blocks that nine in ten first turns found cached: the cache fills in the first few."""
    known = cached[~np.isnan(cached)]
    if len(known) < 20:
        return 0
    return int(np.quantile(known, 0.1)) // block_tokens * block_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauge:
    """The second look: usage on running of the same scrape, in trusted levels in which nobody waited."""

    tokens_per_request: float
    r2: float
    off: float
    """Gauge over what our own rows explain at the same scrapes, minus 1."""
    off_se: float


def gauge_of(runs: Sequence[Run], levels: Sequence[Level], pool: Pool, *, shared_prefix: int) -> Gauge | None:
    """None where fewer than five scrapes had requests running."""
    free = [level for level in levels if level.trusted and not level.waiting_fraction > 0]
    scrapes = [_scrapes(run, free, pool, shared_prefix=shared_prefix) for run in runs]
    running = np.concatenate([one.running for one in scrapes])
    held = np.concatenate([one.held for one in scrapes])
    if len(running) < 5:
        return None
    own = held - shared_prefix
    slope = float(own.sum() / running.sum())
    spread = float(np.sum((own - own.mean()) ** 2))
    r2 = 1.0 - float(np.sum((own - slope * running) ** 2)) / spread if spread > 0 else math.nan
    rebuilt = np.concatenate([one.rebuilt for one in scrapes])
    active = np.concatenate([one.active for one in scrapes])
    off, off_se = _disagreement(own / running, rebuilt, active)
    return Gauge(tokens_per_request=slope + shared_prefix, r2=r2, off=off, off_se=off_se)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scrapes:
    running: Floats
    held: Floats
    """Tokens by the gauge."""
    rebuilt: Floats
    """Tokens by our own rows, whole blocks, shared ones taken off."""
    active: Floats


def _scrapes(run: Run, levels: Sequence[Level], pool: Pool, *, shared_prefix: int) -> _Scrapes:
    unix = run.server.unix_s
    inside = np.zeros(len(unix), dtype=np.bool_)
    for level in levels:
        if level.run_id == run.info.run_id:
            inside |= (unix >= level.clock.begin_unix_s) & (unix <= level.clock.end_unix_s)
    inside &= (run.server.running > 0) & ~np.isnan(run.server.kv_cache_usage)
    shared = shared_prefix // pool.block_tokens * pool.block_tokens
    rebuilt, active = _rebuilt(run.requests, unix[inside], pool.block_tokens, shared=shared)
    return _Scrapes(
        running=run.server.running[inside],
        held=run.server.kv_cache_usage[inside] * pool.tokens,
        rebuilt=rebuilt,
        active=active,
    )


def _rebuilt(rows: Requests, at_unix_s: Floats, block_tokens: int, *, shared: int) -> tuple[Floats, Floats]:
    """KV tokens (whole blocks, without shared ones) and requests in flight at each instant, from our own
    rows. Shapes as given."""
    begins, ends = rows.start_unix_s + np.nan_to_num(rows.sent_s), rows.end_unix_s
    longest = float((ends - begins).max(initial=0.0))
    held, active = np.zeros(len(at_unix_s)), np.zeros(len(at_unix_s))
    for place, at in enumerate(at_unix_s):
        near = np.searchsorted(ends, [at, at + longest])  # rows stand in the order of their ends
        index = np.arange(near[0], min(near[1] + 1, len(rows)))
        index = index[(begins[index] <= at) & (rows.prompt_tokens[index] >= 1)]
        first_s, last_s = rows.first_chunk_s[index], rows.last_chunk_s[index]
        since = at - rows.start_unix_s[index]
        decoded = np.clip((since - first_s) / np.maximum(last_s - first_s, 1e-9), 0.0, 1.0)
        tokens = np.maximum(rows.prompt_tokens[index] - shared, 1) + decoded * np.maximum(
            rows.output_tokens[index] - 1, 0
        )
        held[place] = np.sum(np.ceil(tokens / block_tokens)) * block_tokens
        active[place] = len(index)
    return held, active


def _disagreement(per_running: Floats, rebuilt: Floats, active: Floats) -> tuple[float, float]:
    """Relative paired difference of tokens a request, gauge against rows, and its standard error."""
    some = active > 0
    if some.sum() < 5:
        return 0.0, math.inf
    ours = rebuilt[some] / active[some]
    weight = active[some]
    ratio = float(np.sum(per_running[some] * weight) / np.sum(ours * weight))
    rest = weight * (per_running[some] - ratio * ours)
    error = math.sqrt(float(np.sum(rest**2)) * len(rest) / (len(rest) - 1)) / float(np.sum(ours * weight))
    return ratio - 1.0, error
