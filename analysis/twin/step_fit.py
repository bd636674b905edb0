"""Fits the time of an engine step to measured gaps between tokens.

Each gap is the time of one step. The rows of all requests tell what this step contained. Step time =
a + b * sequences + c * KV tokens + d * prompt tokens computed (docs/twin.md).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.levels.level import Level
from analysis.levels.window import ended_inside
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Bools, Floats, Ints

STEP_TERMS = ("step_base_s", "step_per_seq_s", "step_per_kv_token_s", "prefill_per_token_s")
SEGMENT_TOKENS = 8  # gaps of a segment: enough that errors of the client's timestamps average out
SEGMENTS = 4000  # largest number of segments of a level, about; spread over its window
STRETCHES = 12  # parts of equal length into which a level's window is divided for resampling
MIN_SEGMENTS = 10 * STRETCHES
SHORT_SEGMENT = 0.5  # share of the median segment's duration that a segment counts for at least
MAX_TOGETHER = 0.5  # largest share of gaps of no length: beyond it, arrivals show no single steps
NO_GAP_S = 1e-6  # arrivals of one connection closer than this were read together


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepSums:
    """Sums from which the step times are fitted by least squares: the normal equations.

    The window of a level is divided into stretches. Each stretch has its own sums.
    """

    stretches: NDArray[np.float64]
    """Products of the four regressors with each other and, in the last column, with the times. Shape
    (STRETCHES, 4, 5)."""
    residual_cv: float
    """Coefficient of variation of gaps between tokens at an unchanged load."""

    @property
    def total(self) -> NDArray[np.float64]:
        """Normal equations of the whole window. Shape (4, 5)."""
        return np.asarray(self.stretches.sum(axis=0))

    def resampled(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draws STRETCHES stretches with repetition and adds up their normal equations. Shape (4, 5)."""
        return np.asarray(
            self.stretches[rng.integers(0, len(self.stretches), len(self.stretches))].sum(axis=0)
        )


def step_sums(history: "StepHistory", level: Level, replicas: int) -> StepSums | None:
    """Computes the sums (normal equations) for fitting the step times of a level.

    Each data point is a segment: SEGMENT_TOKENS successive gaps of a request. The fit minimises the relative
    errors of the segments' durations. Tokens that arrive together end at one instant, so a segment may take
    no time at all; its error is then relative to half of the median duration. Returns None where
    `why_no_steps` has a reason.
    """
    rows = history.rows
    if why_no_steps(history, level) is not None:
        return None
    picked = _segments(rows, level)
    design, took_s, at = history.design(picked, replicas)
    weight = 1.0 / np.maximum(took_s, SHORT_SEGMENT * float(np.median(took_s)))
    stretch = ((at - at.min()) / max(np.ptp(at), 1e-9) * STRETCHES).astype(np.int64).clip(0, STRETCHES - 1)
    scaled = np.column_stack([design, took_s]) * weight[:, None]
    products = scaled[:, :4, None] * scaled[:, None, :]
    sums = np.stack([products[stretch == number].sum(axis=0) for number in range(STRETCHES)])
    return StepSums(stretches=sums / len(picked), residual_cv=_gap_cv(rows, level))


def why_no_steps(history: "StepHistory", level: Level) -> str | None:
    """Returns why the step times of a level cannot be fitted, as a clause; None if they can be."""
    rows = history.rows
    if not history.knows_lengths:
        return "the rows hold no token counts"
    done = rows.ok & ended_inside(rows, level.window) & (rows.output_tokens >= 1)
    if done.any() and np.mean(_single_tokens(rows)[done]) < 0.5:
        return "the number of chunks differs from the number of tokens"
    picked = _segments(rows, level)
    if len(picked) < MIN_SEGMENTS:
        return (
            f"answers are too few or too short ({len(picked)} stretches of {SEGMENT_TOKENS} tokens, "
            f"{MIN_SEGMENTS} are needed)"
        )
    if np.mean(history.gaps_of(picked) < NO_GAP_S) > MAX_TOGETHER:
        return "most tokens arrive together with others of their answer"
    return None


def _single_tokens(rows: Requests) -> Bools:
    """Returns whether each chunk of a request was one token, shape (n,)."""
    return np.asarray((rows.chunks == rows.output_tokens) & (rows.first_chunk_tokens == 1))


def solve_step_terms(sums: NDArray[np.float64]) -> Floats:
    """Solves normal equations of shape (4, 5); returns the values of STEP_TERMS in seconds, shape (4,).

    No value is negative (non-negative least squares).
    """
    gram, target = sums[:, :4], sums[:, 4]
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    root = np.linalg.cholesky(gram / np.outer(scale, scale) + 1e-9 * np.eye(4))
    found, _ = optimize.nnls(root.T, np.linalg.solve(root, target / scale))
    return np.asarray(found / scale)


def _segments(rows: Requests, level: Level) -> NDArray[np.int64]:
    """Lists the segments of a level: for each, the request's row and its first gap. Shape (m, 2).

    Only requests are used that ended in the window and received one token in each chunk.
    """
    single = rows.ok & _single_tokens(rows)
    index = np.flatnonzero(single & ended_inside(rows, level.window) & (rows.chunks > SEGMENT_TOKENS))
    counts = ((rows.chunks[index] - 1) // SEGMENT_TOKENS).astype(np.int64)
    row = np.repeat(index, counts)
    segment = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    every = max(len(row) // SEGMENTS, 1)
    return np.column_stack([row, segment * SEGMENT_TOKENS])[::every]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepHistory:
    """Requests of a run, prepared to look up quickly what is in flight at any instant.

    The lookup uses sorted times and cumulative sums.
    """

    rows: Requests
    knows_lengths: bool
    """Whether the length of any prompt is known."""
    gaps_s: Floats
    """Sum of all gaps before each gap, seconds. Shape (number of gaps + 1,)."""
    first: Floats
    """Sorted instants of first tokens, Unix seconds. Shape (n,)."""
    last: Floats
    """Sorted instants of last tokens, Unix seconds. Shape (n,)."""
    at_first: NDArray[np.float64]
    """Cumulative sums over requests sorted by first token. Shape (n + 1, 5).

    Columns: requests, prompt tokens, tokens a second r, r * (its first token's time after the run's first
    token), uncached prompt tokens.
    """
    at_last: NDArray[np.float64]
    """Cumulative sums of the columns of `at_first`, over requests sorted by last token. Shape (n + 1, 5)."""

    @classmethod
    def of(cls, rows: Requests) -> "StepHistory":
        """Builds the history of a run.

        Requests without a token are left out of its sums. A request of unknown prompt length, such as one
        that was cut off, counts with the mean length of the others.
        """
        begun = rows.chunks >= 1
        first = (rows.start_unix_s + rows.first_chunk_s)[begun]
        last = (rows.start_unix_s + rows.last_chunk_s)[begun]
        stated = rows.prompt_tokens[begun]
        knows_lengths = bool((stated >= 1).any())
        mean = float(stated[stated >= 1].mean()) if knows_lengths else 0.0
        prompt = np.where(stated >= 1, stated, mean)
        rate = (rows.chunks[begun] - 1) / np.maximum(last - first, 1e-6)
        uncached = prompt - np.nan_to_num(rows.cached_tokens[begun])
        since = first - first.min(initial=math.inf)
        table = np.column_stack([np.ones(len(first)), prompt, rate, rate * since, uncached])
        return cls(
            knows_lengths=knows_lengths,
            rows=rows,
            gaps_s=np.concatenate([[0.0], np.cumsum(rows.gap_s, dtype=np.float64)]),
            first=np.sort(first),
            last=np.sort(last),
            at_first=_cumulated(table[np.argsort(first, kind="stable")]),
            at_last=_cumulated(table[np.argsort(last, kind="stable")]),
        )

    def design(self, picked: Ints, replicas: int) -> tuple[NDArray[np.float64], Floats, Floats]:
        """Returns three arrays with one row for each of the m segments `picked`.

        They are: regressors (m, 4), durations in seconds (m,), and end times in Unix seconds (m,). The four
        regressors are the number of steps in the segment, and three sums over these steps: sequences, KV
        tokens, and prompt tokens computed. It is not known which replica served a request, so the load is
        divided equally among the replicas.
        """
        ends = self._gap_ends(picked)
        middle = (ends[:, 1:] + ends[:, :-1]) / 2
        begun = np.searchsorted(self.first, middle)
        ended = np.searchsorted(self.last, middle)
        live = self.at_first[begun] - self.at_last[ended]
        since = middle - self.first[0]
        decoding = 1 + (live[..., 0] - 1) / replicas
        held = (live[..., 1] + live[..., 2] * since - live[..., 3]) / replicas
        # A prefill belongs to the step that ends with its first token.
        edges = np.searchsorted(self.first, np.stack([middle[:, 0], 2 * ends[:, -1] - middle[:, -1]]))
        prefills = (self.at_first[edges[1]] - self.at_first[edges[0]]) / replicas
        columns = [
            np.full(len(picked), float(SEGMENT_TOKENS)),
            decoding.sum(axis=1) + prefills[:, 0],
            held.sum(axis=1) + prefills[:, 1],
            prefills[:, 4],
        ]
        return np.column_stack(columns), ends[:, -1] - ends[:, 0], ends[:, -1]

    def gaps_of(self, picked: Ints) -> Floats:
        """Returns the gaps of segments, in seconds. Shape (m, SEGMENT_TOKENS)."""
        begin = self.rows.gap_start[picked[:, 0]] + picked[:, 1]
        return np.asarray(self.rows.gap_s[begin[:, None] + np.arange(SEGMENT_TOKENS)])

    def _gap_ends(self, picked: Ints) -> Floats:
        """Returns the times of the tokens at the ends of each segment's gaps, in Unix seconds.

        Shape (m, SEGMENT_TOKENS + 1).
        """
        rows, row, first_gap = self.rows, picked[:, 0], picked[:, 1]
        begin = rows.gap_start[row]
        after = self.gaps_s[(begin + first_gap)[:, None] + np.arange(SEGMENT_TOKENS + 1)]
        into = after - self.gaps_s[begin][:, None]
        return np.asarray((rows.start_unix_s + rows.first_chunk_s)[row][:, None] + into)


def _cumulated(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([np.zeros(table.shape[1]), np.cumsum(table, axis=0)])


def _gap_cv(rows: Requests, level: Level) -> float:
    """Estimates how much gaps vary while the load stays the same: their coefficient of variation.

    Uses differences of neighbouring gaps, because the load hardly changes between them.
    """
    index = np.flatnonzero(rows.ok & ended_inside(rows, level.window) & (rows.chunks > 2))
    found = [np.diff(rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]) for row in index[:500]]
    middle = [np.median(rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]]) for row in index[:500]]
    if not found:
        return 0.0
    spread = float(np.median(np.abs(np.concatenate(found)))) * 1.4826 / math.sqrt(2.0)
    return spread / max(float(np.median(middle)), 1e-9)
