"""The prefix-cache wall: histories of thinking users are evicted before their next turn finds them.

Formulas: docs/method.md. Blocks, and shares of what a cache without bounds would have found.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.levels.lengths import conversation_ids
from analysis.levels.level import Level, Pool
from analysis.levels.think_time import Thinking, thinking_of
from analysis.reading.rows import Bools, Floats, Ints, Requests
from analysis.reading.runs import Run
from analysis.statistics.samples import student

FOUND_LIMIT = 0.9  # of what is found with 1 or 2 users
FORMULA_SD = 0.025  # of ln(true wall / formula), lengths known: benchmarks/prefix_cache.py
FREEDOM = 4.0  # Student's t, not normal: levels that contradict the formula win over it
SHAPE_SE, DRIFT = 0.01, 0.1  # how far its curve is off at the wall, and more with each share away from there
FARTHEST = math.log(20.0)  # that measured levels can move the formula
LEAST_FOUND = 0.05  # below this at the lowest load nothing is reused: no caching, or texts that do not match
ANSWERS_SEEN = 0.05  # of turns found more cached than the prompt before: never so where answers are not kept
BATCHES = 8  # of a level's window, for the error of what was found
PAUSES, HISTORIES = 24, 32  # quantiles that stand for these laws
INSTANTS, FEWEST_TURNS, MOST_TURNS = 1000, 2000, 5000  # of the time line that w is read off
RESAMPLES = 60
ROUNDS = 4  # until response times and wall agree
GRID = 1001


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turns:
    """Finished requests of known lengths, conversation after conversation, in their order. Shape (n,)."""

    prompt: Ints
    """Tokens, the history included."""
    output: Ints
    first: Ints
    """Where each conversation begins, shape (c,)."""
    length: Ints
    """Its turns, shape (c,)."""
    weight: Floats
    """What each conversation counts, shape (c,): those that the run's end cut stand for longer ones."""
    reusable: Floats
    """Prompt tokens that a cache without bounds holds; nan where the turn before is not known."""
    pauses_s: Floats
    """From an answer's end to the same user's next request, shape (m,)."""
    pause_weight: Floats
    """Shape (m,): pauses that the run's end cut stand for longer ones."""
    block_tokens: int
    shared_prefix: int
    answers_cached: bool
    """The next turn finds the answer before it too, as the same tokens."""


def turns_of(runs: Sequence[Run], *, block_tokens: int, shared_prefix: int) -> Turns | None:
    """Of all requests whose usage the server sent; None where no conversation has a second turn."""
    if not any((run.requests.turn > 0).any() for run in runs):
        return None
    kept = _answers_cached(runs)
    parts = [_of_run(run.requests, kept, block_tokens, shared_prefix) for run in runs]
    prompt, output, reusable = np.concatenate([part for part, _, _ in parts], axis=1)
    length = np.concatenate([length for _, length, _ in parts])
    whole = np.concatenate([whole for _, _, whole in parts])
    pauses_s, seen = np.concatenate([_pauses(run) for run in runs], axis=1)
    if not seen.any() or not np.nanmax(reusable, initial=0.0) > shared_prefix:
        return None
    return Turns(
        prompt=prompt.astype(np.int64),
        output=output.astype(np.int64),
        first=np.cumsum(length) - length,
        length=length,
        weight=_uncut(length.astype(np.float64), whole),
        reusable=reusable,
        pauses_s=pauses_s,
        pause_weight=_uncut(pauses_s, seen > 0),
        block_tokens=block_tokens,
        shared_prefix=shared_prefix,
        answers_cached=kept,
    )


def _known(rows: Requests) -> Bools:
    return rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1)


def _before(rows: Requests) -> Ints:
    """Row of the same conversation's turn before, -1 where there is none. Shape (n,)."""
    order = np.lexsort((rows.start_unix_s, rows.user))
    follows = np.diff(rows.user[order]) == 0
    follows &= rows.turn[order][1:] == rows.turn[order][:-1] + 1
    before = np.full(len(rows), -1, dtype=np.int64)
    before[order[1:][follows]] = order[:-1][follows]
    return before


def _of_run(
    rows: Requests, answers_cached: bool, block_tokens: int, shared_prefix: int
) -> tuple[Floats, Ints, Bools]:
    """Prompt, output and reusable tokens, shape (3, n); of each conversation its turns, and whether it ended
    before the run did."""
    reusable = reusable_tokens(rows, answers_cached, block_tokens, shared_prefix)
    chat = conversation_ids(rows)
    newest = np.zeros(int(rows.user.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(newest, rows.user, chat)
    known = np.flatnonzero(_known(rows))
    order = known[np.lexsort((rows.start_unix_s[known], chat[known]))]
    _, begins, length = np.unique(chat[order], return_index=True, return_counts=True)
    last = order[begins]
    table = np.stack([rows.prompt_tokens, rows.output_tokens, reusable])[:, order]
    return table, length.astype(np.int64), chat[last] < newest[rows.user[last]]


def _pauses(run: Run) -> Floats:
    """Seconds, and 1 where the pause ended or 0 where the user's last level did. Shape (2, m)."""
    rows = run.requests
    order = np.lexsort((rows.start_unix_s, rows.user))
    ended = rows.end_unix_s[order]
    begun = np.append((rows.start_unix_s + np.nan_to_num(rows.sent_s))[order][1:], np.nan)
    same = np.append(np.diff(rows.user[order]) == 0, False)
    plateaus = np.array([plateau[:2] for plateau in run.info.schedule] + [(math.inf, math.inf)])
    begin, stop = plateaus[np.searchsorted(plateaus[:-1, 1], ended)].T
    pause = np.where(same, begun, stop) - ended
    kept = same | ((begin <= ended) & (pause < math.inf))
    return np.stack([np.maximum(pause, 0.0), same])[:, kept]


def _uncut(values: Floats, seen: Bools) -> Floats:
    """Weights, of sum 1, by which values that were seen whole stand for all: those of Kaplan and Meier.

    What was cut at a value weighs nothing and its part goes to all larger ones, or stays where it is when
    there are none. values, seen: shape (n,).
    """
    order = np.lexsort((~seen, values))
    weight = np.zeros(len(values))
    at_risk = len(values) - np.arange(len(values))
    share = np.cumprod(np.where(seen[order], 1.0 - 1.0 / at_risk, 1.0))
    weight[order] = np.where(seen[order], np.append(1.0, share[:-1]) / at_risk, 0.0)
    weight[order[-1]] += 1.0 - weight.sum()
    return weight


def _answers_cached(runs: Sequence[Run]) -> bool:
    """From what turns found; where the server did not say, from prompts that hold all that came before."""
    found, whole = [], []
    for run in runs:
        rows, before = run.requests, _before(run.requests)
        now = np.flatnonzero((before >= 0) & _known(rows) & _known(rows)[before])
        prompt, output = rows.prompt_tokens[before[now]], rows.output_tokens[before[now]]
        told = rows.cached_tokens[now] > 0
        found.append((rows.cached_tokens[now] > prompt + output / 2)[told])
        whole.append(rows.prompt_tokens[now] >= prompt + output)
    seen = np.concatenate(found)
    if len(seen):
        return bool(seen.mean() > ANSWERS_SEEN)
    return bool(np.mean(np.concatenate(whole) if any(map(len, whole)) else [True]) > 0.5)


def reusable_tokens(rows: Requests, answers_cached: bool, block_tokens: int, shared_prefix: int) -> Floats:
    """Whole blocks, in tokens. The last token of an answer is never stored, that of a prompt never reused."""
    before = _before(rows)
    kept = rows.prompt_tokens + (rows.output_tokens - 1.0 if answers_cached else 0.0)
    history = np.where(before >= 0, np.where(_known(rows), kept, np.nan)[before], 0.0)
    history[(rows.turn > 0) & (before < 0)] = np.nan
    most = np.minimum(np.maximum(history, shared_prefix), rows.prompt_tokens - 1.0)
    return np.asarray(np.where(_known(rows), most // block_tokens * block_tokens, np.nan))


class Eviction:
    """What N users find in a cache of so many blocks, as a share of what one without bounds would hold.

    A block goes when the blocks touched after it no longer fit: least recently used goes first. Whoever
    pauses for z finds of h history blocks min(max(C - D, 0), h), the first ones, where D is what the other
    N - 1 users touched in that z: in each a draw of W(z), in the sum normal.
    """

    def __init__(self, turns: Turns, *, response_s: float, rng: np.random.Generator, resample: bool) -> None:
        shared = turns.shared_prefix // turns.block_tokens
        line = _TimeLine(turns, response_s, rng, resample=resample)
        self._shared = shared
        self._pause_s = np.quantile(line.pause_s, (np.arange(PAUSES) + 0.5) / PAUSES)
        touched = line.touched(self._pause_s)
        self._mean, self._variance = touched.mean(axis=0), touched.var(axis=0)
        blocks = turns.reusable[line.row] / turns.block_tokens - shared
        history = blocks[line.again & ~np.isnan(blocks)]
        self._history = np.quantile(history, (np.arange(HISTORIES) + 0.5) / HISTORIES)
        self._again = float(line.again.mean())

    def found(self, users: Floats, blocks: float) -> Floats:
        """users: any shape, real-valued. Share of reusable tokens, the same shape; falls in users."""
        others = np.maximum(np.asarray(users, dtype=np.float64) - 1.0, 0.0)[..., None, None]
        mean, sd = others * self._mean[:, None], np.sqrt(others * self._variance[:, None]) + 1e-9
        room = blocks - self._shared
        hit = np.mean(_fits(room - mean, sd) - _fits(room - mean - self._history, sd), axis=(-2, -1))
        return np.asarray(
            (self._shared + self._again * hit) / (self._shared + self._again * self._history.mean())
        )

    def wall(self, blocks: float) -> float:
        """Users at which `found` falls below FOUND_LIMIT; 1 where two are too many."""
        low, high = 1.0, 2.0
        while float(self.found(np.array(high), blocks)) > FOUND_LIMIT and high < 1e7:
            low, high = high, 2.0 * high
        for _ in range(30):
            middle = (low + high) / 2
            if float(self.found(np.array(middle), blocks)) > FOUND_LIMIT:
                low = middle
            else:
                high = middle
        return low


def _fits(room: Floats, sd: Floats) -> Floats:
    """E[max(room - X, 0)] of a normal X of mean 0."""
    z = room / sd
    return np.asarray(room * special.ndtr(z) + sd * np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi))


class _TimeLine:
    """One user's life: conversations one after the other, in which answers take time and people pause."""

    def __init__(self, turns: Turns, response_s: float, rng: np.random.Generator, *, resample: bool) -> None:
        wanted = min(max(len(turns.prompt), FEWEST_TURNS), MOST_TURNS)
        chosen = _chosen(turns.weight, math.ceil(wanted / turns.length.mean()), rng, resample=resample)
        size = turns.length[chosen]
        ends = np.cumsum(size)
        place = np.arange(int(ends[-1])) - np.repeat(ends - size, size)
        self.row = np.repeat(turns.first[chosen], size) + place
        self.again = place > 0
        prompt, output = turns.prompt[self.row], turns.output[self.row]
        self._prompt, self._output = prompt, output
        self._block, self._shared = turns.block_tokens, turns.shared_prefix // turns.block_tokens
        self.pause_s = turns.pauses_s[_chosen(turns.pause_weight, len(self.row), rng, resample=resample)]
        self._response_s = response_s * output / output.mean()
        self._end_s = np.cumsum(self._response_s + self.pause_s) - self.pause_s
        self._start_s = self._end_s - self._response_s
        last = np.append(~self.again[1:], True)
        held = np.maximum((prompt + output - 1) // self._block - self._shared, 0)
        answers = held - np.maximum(prompt // self._block - self._shared, 0)
        # What the next turn does not take up again lies there until it is evicted.
        left = np.where(last, held, 0 if turns.answers_cached else answers)
        self._left = np.concatenate([[0], np.cumsum(left)])
        self._kept = held - left

    def touched(self, within_s: Floats) -> Floats:
        """Blocks that the user holds, or freed within so long before, at INSTANTS. Shape (INSTANTS, k)."""
        total_s = float(self._end_s[-1])
        now_s = np.linspace(min(float(within_s.max()), total_s / 2), total_s, INSTANTS, endpoint=False)
        turn = np.maximum(np.searchsorted(self._start_s, now_s, side="right") - 1, 0)
        done = np.clip((now_s - self._start_s[turn]) / np.maximum(self._response_s[turn], 1e-12), 0.0, 1.0)
        active = self._end_s[turn] > now_s
        tokens = self._prompt[turn] + done * (self._output[turn] - 1)
        holds = np.where(active, np.maximum(np.ceil(tokens / self._block) - self._shared, 0), 0)
        ended = turn + ~active
        older = np.searchsorted(self._end_s, (now_s[:, None] - within_s).ravel()).reshape(-1, len(within_s))
        freed = np.maximum(self._left[ended][:, None] - self._left[older], 0)
        idle = np.where(~active[:, None] & (older <= turn[:, None]), self._kept[turn][:, None], 0)
        return np.asarray(holds[:, None] + freed + idle, dtype=np.float64)


def _chosen(weight: Floats, count: int, rng: np.random.Generator, *, resample: bool) -> Ints:
    """So many indices in random order, each as often as its weight says (systematic sampling); of a
    resample of the weights' owners where asked. Shape (count,)."""
    if resample:
        weight = weight * np.bincount(rng.integers(0, len(weight), len(weight)), minlength=len(weight))
    cumulative = np.cumsum(weight)
    places = (np.arange(count) + 0.5) / count * cumulative[-1]
    return rng.permutation(np.minimum(np.searchsorted(cumulative, places), len(weight) - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a trusted level found of the reusable tokens, and its standard error."""

    users: int
    share: float
    se: float


def found_in(runs: Sequence[Run], levels: Sequence[Level], turns: Turns) -> list[Found]:
    """By the requests' cached tokens; where the server did not send them, by its counter."""
    found = []
    for run in runs:
        reusable = reusable_tokens(
            run.requests, turns.answers_cached, turns.block_tokens, turns.shared_prefix
        )
        for level in levels:
            if level.trusted and level.run_id == run.info.run_id:
                edges = np.linspace(level.clock.begin_unix_s, level.clock.end_unix_s, BATCHES + 1)
                share = _found(*_batches(run, reusable, edges))
                if share is not None:
                    found.append(Found(users=level.users, share=share[0], se=share[1]))
    return sorted(found, key=lambda one: one.users)


def _batches(run: Run, reusable: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Tokens found and reusable tokens in each batch of a window, shape (BATCHES,) each."""
    rows = run.requests
    inside = (rows.end_unix_s >= edges[0]) & (rows.end_unix_s < edges[-1]) & ~np.isnan(reusable)
    if inside.any() and not np.isnan(rows.cached_tokens[inside]).any():
        at, hits = rows.end_unix_s[inside], rows.cached_tokens[inside]
        return np.histogram(at, edges, weights=hits)[0], np.histogram(at, edges, weights=reusable[inside])[0]
    counter = run.server.prefix_cache_hits_total
    told = ~np.isnan(counter)
    begun = rows.start_unix_s + np.nan_to_num(rows.sent_s)
    asked = (begun >= edges[0]) & (begun < edges[-1]) & ~np.isnan(reusable)
    if told.sum() < 2:
        return np.full(BATCHES, np.nan), np.full(BATCHES, np.nan)
    hits = np.diff(np.interp(edges, run.server.unix_s[told], counter[told]))
    return hits, np.histogram(begun[asked], edges, weights=reusable[asked])[0]


def _found(hits: Floats, reusable: Floats) -> tuple[float, float] | None:
    """The ratio and its standard error, by batches and widened for their number; None where there is none."""
    total = float(reusable.sum())
    if not total > 0:
        return None
    share = float(hits.sum()) / total
    spread = float(np.sum((hits - share * reusable) ** 2)) * BATCHES / (BATCHES - 1)
    return share, math.sqrt(spread) / total * student(BATCHES) / 1.645


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrefixWall:
    """The wall and draws of it, shape (draws,), in users of all engines together."""

    x: float
    draws: Floats
    measured: bool
    """Hit rates of several levels moved the formula."""
    with_pool: Callable[[float], float]
    """Factor on the pool -> where the wall would stand."""


def prefix_wall(
    runs: Sequence[Run],
    levels: Sequence[Level],
    pool: Pool,
    *,
    shared_prefix: int,
    resamples: int,
    rng: np.random.Generator,
) -> PrefixWall | None:
    """Where thinking users outgrow the cache: the formula, moved by what trusted levels found.

    None where nothing is reused: conversations of one turn, or no prefix caching.
    """
    thinking = thinking_of(levels)
    turns = turns_of(runs, block_tokens=pool.block_tokens, shared_prefix=shared_prefix)
    if turns is None or thinking is None:
        return None
    found = found_in(runs, levels, turns)
    caching = runs[-1].info.server.enable_prefix_caching
    if caching is False or (found[0].share < LEAST_FOUND if found else caching is None):
        return None
    eviction, formula = _settled(turns, thinking, pool, pool.blocks)
    response_s = _response_s(thinking, formula * pool.engines)
    drawn = [
        math.log(Eviction(turns, response_s=response_s, rng=rng, resample=True).wall(pool.blocks))
        for _ in range(RESAMPLES)
    ]
    sd = math.hypot(FORMULA_SD, float(np.std(drawn)))
    shift, weight = _shift(eviction, pool, found, sd=sd)
    middle, *draws = np.interp(np.append(0.5, rng.uniform(size=resamples)), np.cumsum(weight), shift)
    scale = pool.engines * math.exp(middle)

    def with_pool(factor: float) -> float:
        return scale * _settled(turns, thinking, pool, pool.blocks * factor)[1]

    return PrefixWall(
        x=scale * formula,
        draws=pool.engines * formula * np.exp(draws),
        measured=len(found) > 1,
        with_pool=with_pool,
    )


def _response_s(thinking: Thinking, users: float) -> float:
    whole = max(round(users), 1)
    return thinking.idle_s + thinking.slope_s * whole * thinking.active(whole)


def _settled(turns: Turns, thinking: Thinking, pool: Pool, blocks: float) -> tuple[Eviction, float]:
    """The formula and its wall, in users of one engine, at the response times that so many users cause."""
    users = 1.0
    for _ in range(ROUNDS):
        response_s = _response_s(thinking, users * pool.engines)
        eviction = Eviction(turns, response_s=response_s, rng=np.random.default_rng(0), resample=False)
        users = eviction.wall(blocks)
    return eviction, users


def _shift(eviction: Eviction, pool: Pool, found: Sequence[Found], *, sd: float) -> tuple[Floats, Floats]:
    """Posterior of ln(wall / formula): a grid and its weights, shape (GRID,) each.

    All that was found is taken relative to the lowest load, in the measurement and in the formula alike.
    """
    shift = np.linspace(-FARTHEST, FARTHEST, GRID)
    log_weight = -0.5 * (FREEDOM + 1.0) * np.log1p((shift / sd) ** 2 / FREEDOM)
    if len(found) > 1:
        lowest, rest = found[0], found[1:]
        relative = np.array([one.share for one in rest]) / lowest.share
        variance = (np.array([one.se for one in rest]) / lowest.share) ** 2
        variance += SHAPE_SE**2 + (DRIFT * (relative - FOUND_LIMIT)) ** 2
        common = relative * lowest.se / lowest.share  # the lowest level's error is in all of them
        expected = [
            eviction.found(one.users / pool.engines * np.exp(-shift), pool.blocks) for one in (lowest, *rest)
        ]
        off = relative[:, None] - np.stack(expected[1:]) / expected[0]
        weighed = off / variance[:, None]
        # The quadratic form of diag(variance) + common common^T, by Sherman and Morrison.
        log_weight -= 0.5 * np.sum(off * weighed, axis=0)
        log_weight += 0.5 * (common @ weighed) ** 2 / (1.0 + float(np.sum(common**2 / variance)))
    weight = np.exp(log_weight - log_weight.max())
    return shift, weight / weight.sum()
