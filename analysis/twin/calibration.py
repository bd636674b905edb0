"""Run folders -> Service: step times, the way from engine to client, lengths, pauses, shared text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.evidence.evidence import Evidence, slots_of
from analysis.evidence.lengths import conversation_ids
from analysis.levels.level import Level
from analysis.levels.window import ended_inside
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Floats, Ints
from analysis.virtual.run import simulate_users
from analysis.virtual.service import Chatting, Service, TurnTokens
from loadtest.simulator.config import EngineConfig
from loadtest.simulator.virtual import ROUTERS

SEGMENT_TOKENS = 8  # a client's stamps jitter by a step's fraction: over eight steps it averages out
SEGMENTS = 4000  # of each level, spread over its window
STRETCHES = 12  # stretches of a level's window that are resampled as a whole
DRAWS = 24
STEP_TERMS = ("step_base_s", "step_per_seq_s", "step_per_kv_token_s", "prefill_per_token_s")
MAX_PREEMPTED, MAX_WAITING = 0.02, 0.1  # gaps of preempted requests are no steps
OVERHEAD_REQUESTS = 1500
DEFAULT_SLOTS, DEFAULT_BUDGET = 256, 2048  # vLLM 0.32's server defaults below 70 GiB


class CalibrationError(Exception):
    """The run cannot tell. One sentence. Exit code 3."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServiceFit:
    """A service fitted to levels, and as many others as the data would also allow."""

    service: Service
    draws: Sequence[Service]
    """Step times and lengths resampled in whole stretches of time and whole conversations."""
    fitted_users: Sequence[int]
    replicas: int = 1
    """That the runs were spread over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFlags:
    """What vLLM does not export, as it was started. None: its default, or what a level's slots showed."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    async_scheduling: bool | None = None


def calibrate(
    evidence: Evidence,
    levels: Sequence[Level],
    flags: ServerFlags,
    *,
    replicas: int = 1,
    router: str = "least-loaded",
    seed: int = 0,
) -> ServiceFit:
    """Fits the engine to trusted `levels` of the evidence's runs, spread by a router over replicas.

    Raises CalibrationError when lengths, pool or single tokens are missing.
    """
    rng = np.random.default_rng(seed)
    if evidence.pool is None or evidence.pairs is None:
        raise CalibrationError(
            "The twin needs the server's block counts (/metrics) and its token counts (usage): this run "
            "lacks one of them."
        )
    usable = [level for level in levels if level.trusted]
    seen = {run.info.run_id: _Steps.of(run.requests) for run in evidence.runs}
    steps = [
        fit
        for level in usable
        if _is_calm(level) and (fit := _step_sums(seen[level.run_id], level, replicas))
    ]
    if not steps:
        raise CalibrationError(
            "No trusted level shows single tokens (one for each chunk) without queues: the step times cannot "
            "be fitted."
        )
    chatting = chatting_of(evidence, usable)
    engine = _engine(evidence, flags, _solve(np.sum([step.total for step in steps], axis=0)), _jitter(steps))
    base = Service(engine=engine, chatting=chatting)
    fitted = _with_overhead(base, evidence, usable, _Spread(replicas, router))
    draws = [_draw(fitted, steps, rng) for _ in range(DRAWS)]
    users = [level.users for level in usable]
    return ServiceFit(service=fitted, draws=draws, fitted_users=users, replicas=replicas)


def _is_calm(level: Level) -> bool:
    preempted = level.preemptions / max(level.finished, 1)
    return not preempted > MAX_PREEMPTED and not level.waiting_fraction > MAX_WAITING


# Step times: gaps between a request's tokens are steps, and everybody's rows say what was in each step.


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sums:
    """Normal equations of a level's stretches of time, (STRETCHES, 4, 5); the gaps are the last column."""

    blocks: NDArray[np.float64]
    residual_cv: float

    @property
    def total(self) -> NDArray[np.float64]:
        return np.asarray(self.blocks.sum(axis=0))

    def resampled(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return np.asarray(self.blocks[rng.integers(0, len(self.blocks), len(self.blocks))].sum(axis=0))


def _step_sums(steps: "_Steps", level: Level, replicas: int) -> _Sums | None:
    """Of segments of SEGMENT_TOKENS gaps: steps, and the sums over them of sequences, KV tokens and prefill
    tokens, with each relative error weighted alike. None where chunks are not single tokens."""
    rows = steps.rows
    picked = _segments(rows, level)
    if len(picked) < 10 * STRETCHES:
        return None
    design, took, at = steps.design(picked, replicas)
    weight = 1.0 / took
    block = ((at - at.min()) / max(np.ptp(at), 1e-9) * STRETCHES).astype(np.int64).clip(0, STRETCHES - 1)
    scaled = np.column_stack([design, took]) * weight[:, None]
    products = scaled[:, :4, None] * scaled[:, None, :]
    sums = np.stack([products[block == place].sum(axis=0) for place in range(STRETCHES)])
    return _Sums(blocks=sums / len(picked), residual_cv=_gap_cv(rows, level))


def _solve(sums: NDArray[np.float64]) -> Floats:
    """The step terms, none negative, of normal equations. Shape (4,)."""
    gram, target = sums[:, :4], sums[:, 4]
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    root = np.linalg.cholesky(gram / np.outer(scale, scale) + 1e-9 * np.eye(4))
    found, _ = optimize.nnls(root.T, np.linalg.solve(root, target / scale))
    return np.asarray(found / scale)


def _segments(rows: Requests, level: Level) -> NDArray[np.int64]:
    """(row, first gap) of segments, of requests with a token a chunk that ended in the window. (m, 2)."""
    single = rows.ok & (rows.chunks == rows.output_tokens) & (rows.first_chunk_tokens == 1)
    index = np.flatnonzero(single & ended_inside(rows, level.window) & (rows.chunks > SEGMENT_TOKENS))
    counts = ((rows.chunks[index] - 1) // SEGMENT_TOKENS).astype(np.int64)
    row = np.repeat(index, counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    every = max(len(row) // SEGMENTS, 1)
    return np.column_stack([row, place * SEGMENT_TOKENS])[::every]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Steps:
    """Who decodes and who prefills when, from all rows: sorted instants and cumulative sums."""

    rows: Requests
    gaps_s: Floats
    """Seconds of all gaps before each, shape (sum of gaps + 1,)."""
    first: Floats
    last: Floats
    at_first: NDArray[np.float64]
    """Cumulative sums in the order of `first`: requests, prompt tokens, tokens a second, the same times the
    instant, uncached prompt tokens. Shape (n + 1, 5)."""
    at_last: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Requests) -> "_Steps":
        known = (rows.chunks >= 1) & (rows.prompt_tokens >= 1)
        first = (rows.start_unix_s + rows.first_chunk_s)[known]
        last = (rows.start_unix_s + rows.last_chunk_s)[known]
        prompt = rows.prompt_tokens[known]
        rate = (rows.chunks[known] - 1) / np.maximum(last - first, 1e-6)
        uncached = prompt - np.nan_to_num(rows.cached_tokens[known])
        table = np.column_stack([np.ones(len(first)), prompt, rate, rate * (first - first[0]), uncached])
        return cls(
            rows=rows,
            gaps_s=np.concatenate([[0.0], np.cumsum(rows.gap_s, dtype=np.float64)]),
            first=np.sort(first),
            last=np.sort(last),
            at_first=_cumulated(table[np.argsort(first, kind="stable")]),
            at_last=_cumulated(table[np.argsort(last, kind="stable")]),
        )

    def design(self, picked: Ints, replicas: int) -> tuple[NDArray[np.float64], Floats, Floats]:
        """Regressors (m, 4), seconds (m,) and instants (m,) of segments. Which replica served whom no row
        says: beside a request is its replica's share of the others."""
        ends = self._gap_ends(picked)
        middle = (ends[:, 1:] + ends[:, :-1]) / 2
        begun = np.searchsorted(self.first, middle)
        ended = np.searchsorted(self.last, middle)
        live = self.at_first[begun] - self.at_last[ended]
        since = middle - self.first[0]
        decoding = 1 + (live[..., 0] - 1) / replicas
        held = (live[..., 1] + live[..., 2] * since - live[..., 3]) / replicas
        # A prefill belongs to the step at whose end its first token comes: between two middles.
        edges = np.searchsorted(self.first, np.stack([middle[:, 0], 2 * ends[:, -1] - middle[:, -1]]))
        prefills = (self.at_first[edges[1]] - self.at_first[edges[0]]) / replicas
        columns = [
            np.full(len(picked), float(SEGMENT_TOKENS)),
            decoding.sum(axis=1) + prefills[:, 0],
            held.sum(axis=1) + prefills[:, 1],
            prefills[:, 4],
        ]
        return np.column_stack(columns), ends[:, -1] - ends[:, 0], ends[:, -1]

    def _gap_ends(self, picked: Ints) -> Floats:
        """Instants of the tokens at the edges of each segment's gaps. Shape (m, SEGMENT_TOKENS + 1)."""
        rows, row, place = self.rows, picked[:, 0], picked[:, 1]
        begin = rows.gap_start[row]
        after = self.gaps_s[(begin + place)[:, None] + np.arange(SEGMENT_TOKENS + 1)]
        into = after - self.gaps_s[begin][:, None]
        return np.asarray((rows.start_unix_s + rows.first_chunk_s)[row][:, None] + into)


def _cumulated(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([np.zeros(table.shape[1]), np.cumsum(table, axis=0)])


def _gap_cv(rows: Requests, level: Level) -> float:
    """Spread of single gaps around their neighbours', robust: what is left when the load does not change."""
    index = np.flatnonzero(rows.ok & ended_inside(rows, level.window) & (rows.chunks > 2))
    found = [np.diff(rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]) for row in index[:500]]
    middle = [np.median(rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]) for row in index[:500]]
    if not found:
        return 0.0
    spread = float(np.median(np.abs(np.concatenate(found)))) * 1.4826 / math.sqrt(2.0)
    return spread / max(float(np.median(middle)), 1e-9)


def _jitter(steps: Sequence[_Sums]) -> float:
    return float(np.median([step.residual_cv for step in steps]))


# Everything else.


def _engine(evidence: Evidence, flags: ServerFlags, terms: Floats, jitter_cv: float) -> EngineConfig:
    info = evidence.runs[-1].info
    pool = evidence.pool
    assert pool is not None
    stated = flags.max_num_seqs or info.server.max_num_seqs
    slots = slots_of(evidence.levels, stated=stated) or DEFAULT_SLOTS
    asynchronous = info.gpu is not None and info.server.simulated is None
    engine = EngineConfig(
        num_gpu_blocks=pool.blocks + 1,
        block_size=pool.block_tokens,
        max_model_len=min(info.server.max_model_len or pool.tokens, pool.tokens),
        max_num_seqs=slots,
        max_num_batched_tokens=max(flags.max_num_batched_tokens or DEFAULT_BUDGET, slots),
        enable_prefix_caching=info.server.enable_prefix_caching is not False,
        # vLLM 0.32 turns it on by default on GPUs and off on CPUs.
        async_scheduling=asynchronous if flags.async_scheduling is None else flags.async_scheduling,
        jitter_cv=jitter_cv,
        step_base_s=1.0,
    )
    return _with_terms(engine, terms)


def _with_terms(engine: EngineConfig, terms: Floats) -> EngineConfig:
    base, per_seq, per_kv_token, per_prompt_token = (float(term) for term in terms)
    return replace(
        engine,
        step_base_s=max(base, 1e-6),
        step_per_seq_s=per_seq,
        step_per_kv_token_s=per_kv_token,
        prefill_per_token_s=per_prompt_token,
    )


def chatting_of(evidence: Evidence, levels: Sequence[Level]) -> Chatting:
    """Lengths, pauses and shared text of the runs' people."""
    assert evidence.pairs is not None
    chats: list[tuple[TurnTokens, ...]] = []
    pauses: list[Floats] = []
    answers: list[bool] = []
    for run in evidence.runs:
        rows = run.requests
        for chat in _conversations(rows):
            turns = [(int(rows.prompt_tokens[row]), int(rows.output_tokens[row])) for row in chat]
            chats.append(tuple(turns))
            answers += _found_answers(rows, chat)
        pauses += [_pauses(rows, level) for level in levels if level.run_id == run.info.run_id]
    seen = np.concatenate(pauses) if pauses else np.empty(0)
    return Chatting(
        conversations=chats,
        pauses_s=seen if len(seen) else np.array([1e-3]),
        shared_prefix_tokens=evidence.pairs.shared_prefix,
        answers_cached=not answers or 2 * sum(answers) >= len(answers),
    )


def _conversations(rows: Requests) -> list[Ints]:
    """Row numbers of each conversation's turns whose lengths are known, in their order."""
    known = np.flatnonzero(rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1))
    chat = conversation_ids(rows)[known]
    order = known[np.lexsort((rows.start_unix_s[known], chat))]
    ends = np.flatnonzero(np.diff(np.sort(chat))) + 1
    return np.split(order, ends)


def _found_answers(rows: Requests, chat: Ints) -> list[bool]:
    """For each turn after a first: whether it found more cached than the prompt before it."""
    return [
        bool(rows.cached_tokens[now] > rows.prompt_tokens[before] + rows.output_tokens[before] / 2)
        for before, now in pairwise(chat)
        if rows.cached_tokens[now] > 0
    ]


def _pauses(rows: Requests, level: Level) -> Floats:
    """Seconds between an answer's end and the same user's next request, of answers in the window."""
    order = np.lexsort((rows.start_unix_s, rows.user))
    same = np.diff(rows.user[order]) == 0
    ended = rows.end_unix_s[order][:-1]
    begun = (rows.start_unix_s + np.nan_to_num(rows.sent_s))[order][1:]
    inside = same & (ended >= level.window.begin_unix_s) & (ended < level.window.end_unix_s)
    return np.asarray(np.maximum((begun - ended)[inside], 0.0))


@dataclass(frozen=True, slots=True)
class _Spread:
    replicas: int
    router: str


def _with_overhead(base: Service, evidence: Evidence, levels: Sequence[Level], spread: _Spread) -> Service:
    """What the client's median TTFT has beyond the engine's, as a rising line in users."""
    calm = sorted(
        (level for level in levels if _is_calm(level) and level.ttft.p50), key=lambda one: one.users
    )
    chosen = (
        [calm[place] for place in sorted({0, len(calm) // 3, 2 * len(calm) // 3, len(calm) - 1})]
        if calm
        else []
    )
    fitted = base
    for _ in range(2):  # the overhead is a part of the cycle, which changes the load a little
        beyond = [_beyond(fitted, level, evidence, spread) for level in chosen]
        if not beyond:
            return fitted
        design = np.column_stack([np.ones(len(chosen)), [level.users / spread.replicas for level in chosen]])
        (alone, each), _ = optimize.nnls(design, np.maximum(np.array(beyond), 0.0))
        fitted = replace(fitted, overhead_s=float(alone), overhead_per_user_s=float(each))
    return fitted


def _beyond(service: Service, level: Level, evidence: Evidence, spread: _Spread) -> float:
    played = simulate_users(
        service,
        level.users,
        requests=max(OVERHEAD_REQUESTS, 20 * level.users),
        replicas=spread.replicas,
        route=ROUTERS[spread.router](),
    )
    assert level.ttft.p50 is not None
    engine_s = played.figures(evidence.slo).ttft_p50_s - service.overhead_at(level.users / spread.replicas)
    return level.ttft.p50 - engine_s


def _draw(fitted: Service, steps: Sequence[_Sums], rng: np.random.Generator) -> Service:
    terms = _solve(np.sum([step.resampled(rng) for step in steps], axis=0))
    chats = fitted.chatting.conversations
    drawn = [chats[place] for place in rng.integers(0, len(chats), len(chats))]
    return replace(
        fitted,
        engine=_with_terms(fitted.engine, terms),
        chatting=replace(fitted.chatting, conversations=drawn),
    )
