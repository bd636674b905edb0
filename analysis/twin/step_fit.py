"""Step times from gaps between tokens: each gap is a step, and everybody's rows say what was in that step.

A step lasts a + b sequences + c KV tokens + d prompt tokens computed (docs/twin.md); knows no engine.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.levels.level import Level
from analysis.levels.window import ended_inside
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Floats, Ints

STEP_TERMS = ("step_base_s", "step_per_seq_s", "step_per_kv_token_s", "prefill_per_token_s")
SEGMENT_TOKENS = 8  # a client's stamps are off by a fraction of a step: over eight steps that averages out
SEGMENTS = 4000  # at most about so many of each level, spread over its window
STRETCHES = 12  # stretches of time of a level's window, which are resampled as a whole


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepSums:
    """Normal equations of the step times in each stretch of a level's window."""

    stretches: NDArray[np.float64]
    """Shape (STRETCHES, 4, 5): the four regressors with each other and, in the last column, with the gaps."""
    residual_cv: float
    """Spread of single gaps around their neighbours', relative."""

    @property
    def total(self) -> NDArray[np.float64]:
        """The normal equations of the whole window. Shape (4, 5)."""
        return np.asarray(self.stretches.sum(axis=0))

    def resampled(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """The normal equations of as many stretches, drawn with repetition. Shape (4, 5)."""
        return np.asarray(
            self.stretches[rng.integers(0, len(self.stretches), len(self.stretches))].sum(axis=0)
        )


def step_sums(history: "StepHistory", level: Level, replicas: int) -> StepSums | None:
    """The normal equations of a level's segments of SEGMENT_TOKENS gaps, relative errors weighted alike.

    None where chunks are not single tokens, or too few are.
    """
    rows = history.rows
    picked = _segments(rows, level)
    if len(picked) < 10 * STRETCHES:
        return None
    design, took_s, at = history.design(picked, replicas)
    weight = 1.0 / took_s
    stretch = ((at - at.min()) / max(np.ptp(at), 1e-9) * STRETCHES).astype(np.int64).clip(0, STRETCHES - 1)
    scaled = np.column_stack([design, took_s]) * weight[:, None]
    products = scaled[:, :4, None] * scaled[:, None, :]
    sums = np.stack([products[stretch == number].sum(axis=0) for number in range(STRETCHES)])
    return StepSums(stretches=sums / len(picked), residual_cv=_gap_cv(rows, level))


def solve_step_terms(sums: NDArray[np.float64]) -> Floats:
    """The values of STEP_TERMS, none negative, that solve normal equations of shape (4, 5). Shape (4,)."""
    gram, target = sums[:, :4], sums[:, 4]
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    root = np.linalg.cholesky(gram / np.outer(scale, scale) + 1e-9 * np.eye(4))
    found, _ = optimize.nnls(root.T, np.linalg.solve(root, target / scale))
    return np.asarray(found / scale)


def _segments(rows: Requests, level: Level) -> NDArray[np.int64]:
    """Row and first gap of each segment of requests that ended in the window, one token a chunk. (m, 2)."""
    single = rows.ok & (rows.chunks == rows.output_tokens) & (rows.first_chunk_tokens == 1)
    index = np.flatnonzero(single & ended_inside(rows, level.window) & (rows.chunks > SEGMENT_TOKENS))
    counts = ((rows.chunks[index] - 1) // SEGMENT_TOKENS).astype(np.int64)
    row = np.repeat(index, counts)
    segment = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    every = max(len(row) // SEGMENTS, 1)
    return np.column_stack([row, segment * SEGMENT_TOKENS])[::every]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepHistory:
    """Which requests decode and prefill at any instant: sorted instants and cumulative sums of all rows."""

    rows: Requests
    gaps_s: Floats
    """Sum of all gaps before each gap, seconds. Shape (gaps + 1,)."""
    first: Floats
    """Instants of first tokens, rising, Unix seconds."""
    last: Floats
    """Instants of last tokens, rising, Unix seconds."""
    at_first: NDArray[np.float64]
    """Cumulative sums in the order of `first`: requests, prompt tokens, tokens a second, the same times the
    instant, uncached prompt tokens. Shape (n + 1, 5)."""
    at_last: NDArray[np.float64]
    """The same sums in the order of `last`."""

    @classmethod
    def of(cls, rows: Requests) -> "StepHistory":
        """Takes the requests that received a token and whose prompt length is known."""
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
        """Regressors (m, 4), seconds (m,) and end instants (m,) of segments.

        The regressors are sums over the steps of a segment: steps, sequences, KV tokens and prompt tokens
        computed. No row says which replica served it: each is taken to have its share of the other requests.
        """
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
        rows, row, first_gap = self.rows, picked[:, 0], picked[:, 1]
        begin = rows.gap_start[row]
        after = self.gaps_s[(begin + first_gap)[:, None] + np.arange(SEGMENT_TOKENS + 1)]
        into = after - self.gaps_s[begin][:, None]
        return np.asarray((rows.start_unix_s + rows.first_chunk_s)[row][:, None] + into)


def _cumulated(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([np.zeros(table.shape[1]), np.cumsum(table, axis=0)])


def _gap_cv(rows: Requests, level: Level) -> float:
    """Relative spread of gaps around their neighbours, robust: the jitter at an unchanged load."""
    index = np.flatnonzero(rows.ok & ended_inside(rows, level.window) & (rows.chunks > 2))
    found = [np.diff(rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]) for row in index[:500]]
    middle = [np.median(rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]) for row in index[:500]]
    if not found:
        return 0.0
    spread = float(np.median(np.abs(np.concatenate(found)))) * 1.4826 / math.sqrt(2.0)
    return spread / max(float(np.median(middle)), 1e-9)
