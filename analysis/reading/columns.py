"""A run as columns: its requests, the scrapes of its server, and the health of its load generators."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.statistics.arrays import Bools, Floats, Ints
from loadtest.record import Outcome

OUTCOMES = tuple(Outcome)
OUTCOME_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
NAN = float("nan")
NO_ERROR_TEXT = -1
NO_CLASS = -1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Requests:
    """Requests in the order of their ends, shape (n,); missing values are nan.

    Fields that end in `_unix_s` are by the clock of Locust's master. Other times in `_s` are seconds after
    the request's `start_unix_s`.
    """

    start_unix_s: Floats
    sent_s: Floats
    scheduled_unix_s: Floats
    """Time at which an open loop's request was due, by the master's clock; nan in a closed loop."""
    first_chunk_s: Floats
    first_answer_s: Floats
    last_chunk_s: Floats
    end_s: Floats
    chunks: Floats
    first_chunk_tokens: Floats
    """Tokens of the first chunk; 1 where the server did not say."""
    prompt_tokens: Floats
    output_tokens: Floats
    cached_tokens: Floats
    http_status: Floats
    max_tokens: Floats
    """Most output tokens that each request asked for."""
    pause_s: Floats
    """Pause of the user after each request that failed; nan without one."""
    outcome: Ints
    """Index of each request's outcome in OUTCOMES."""
    error: Ints
    """Index of each request's error text in `error_texts`; NO_ERROR_TEXT without one."""
    error_texts: tuple[str, ...]
    """Texts of errors. Texts that differ only in their numbers are one: the first that was met."""
    user: Ints
    """Number of each request's user, unique over all workers."""
    turn: Ints
    step: Ints
    """Number of each request in a turn of its user: 0 for what a person asks, larger for a tool's answer."""
    user_class: Ints
    """Index of each request's class of users in `class_names`; NO_CLASS without a workload file."""
    class_names: tuple[str, ...]
    gap_s: NDArray[np.float32]
    """Chunk gaps of all requests, request after request, shape (sum of gaps,)."""
    gap_start: Ints
    """Index in `gap_s` at which each request's gaps begin, shape (n + 1,)."""
    longest_gap_s: Floats
    """Longest chunk gap of each request; nan with fewer than two chunks, or where its gaps are unknown."""
    late_s: Floats
    """Seconds by which a turn of a recorded session was sent late; nan if it was in time."""
    recorded_prompt: Floats
    """Tokens of the prompt, and next of the answer, when the session was recorded; nan where unknown."""
    recorded_output: Floats
    reusable_tokens: Floats
    """Prompt tokens that a prefix cache without a limit would hold; nan unless sessions were replayed."""

    def __len__(self) -> int:
        return len(self.start_unix_s)

    @property
    def end_unix_s(self) -> Floats:
        """Times at which the requests ended, by the master's clock, shape (n,)."""
        return self.start_unix_s + self.end_s

    @property
    def tokens(self) -> Floats:
        """Output tokens of each request, shape (n,).

        If the server sent no count, as for unfinished requests, the number of chunks is used instead.
        """
        return np.where(np.isnan(self.output_tokens), self.chunks, self.output_tokens)

    @property
    def ok(self) -> Bools:
        """Whether each request succeeded, shape (n,)."""
        return np.equal(self.outcome, OUTCOME_CODES[Outcome.OK])

    @property
    def failed(self) -> Bools:
        """Whether each request counts as an error, shape (n,)."""
        return ~self.with_outcome(Outcome.OK, Outcome.CANCELLED)

    @property
    def max_possible_tokens(self) -> Floats:
        """Output tokens that the server may have made for each request, at most, shape (n,).

        For a request that was sent and has no usage this is what it asked for, because the load test does not
        see what the server does after an answer broke off. A request that was refused has none.
        """
        refused = self.with_outcome(Outcome.CONNECT_ERROR) | (
            (self.http_status >= 300) & (self.http_status < 500)
        )
        unseen = np.isnan(self.output_tokens) & ~np.isnan(self.sent_s) & ~refused
        return np.where(unseen, np.fmax(self.max_tokens, self.chunks), self.tokens)

    def of_class(self, name: str) -> Bools:
        """Returns whether the user of each request belongs to a class, shape (n,)."""
        code = self.class_names.index(name) if name in self.class_names else len(self.class_names)
        return np.equal(self.user_class, code)

    def with_outcome(self, *outcomes: Outcome) -> Bools:
        """Returns whether each request has one of these outcomes, shape (n,)."""
        return np.isin(self.outcome, [OUTCOME_CODES[outcome] for outcome in outcomes])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServerSamples:
    """Scrapes in time order, shape (m,); missing values are nan.

    With several engines, each value is the sum over the engines that are there. Only the KV usage is their
    mean. Counters go on where an engine restarted.
    """

    unix_s: Floats
    engines: int
    """Most engines that were there at once."""
    engines_there: Ints
    """Engines that were there at each scrape."""
    restarts: tuple[tuple[float, float], ...] = ()
    """(last scrape before, first scrape after) for each restart of an engine, in seconds since 1970."""
    alternating: bool = False
    """Whether scrapes of one engine came from several replicas by turns, so that its counters are unknown."""
    running: Floats
    waiting: Floats
    waiting_capacity: Floats
    num_gpu_blocks: Floats
    kv_cache_usage: Floats
    preemptions_total: Floats
    generation_tokens_total: Floats
    prefix_cache_queries_total: Floats
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_cache_hits_total: Floats
    vram_used_bytes: Floats
    simulated_lateness_s: Floats
    ttft_sum_s: Floats
    """Sum of the histogram of the engines' own TTFT, and next its count."""
    ttft_count: Floats
    tpot_sum_s: Floats
    tpot_count: Floats
    e2e_sum_s: Floats
    e2e_count: Floats
    queue_sum_s: Floats
    queue_count: Floats
    failed_scrapes: int

    def __len__(self) -> int:
        return len(self.unix_s)

    @property
    def blocks_each(self) -> Floats:
        """Mean blocks of an engine's KV pool at each scrape, with the null block, shape (m,)."""
        return self.num_gpu_blocks / np.maximum(self.engines_there, 1)

    @property
    def last_blocks_each(self) -> float:
        """Blocks of `blocks_each` at the last scrape that told them; nan if none did."""
        told = self.blocks_each[~np.isnan(self.blocks_each)]
        return float(told[-1]) if len(told) else np.nan

    @property
    def replaced(self) -> tuple[float, ...]:
        """Times at which an engine came or went, in seconds since 1970."""
        changed = np.flatnonzero(np.diff(self.engines_there))
        return tuple(float(self.unix_s[at + 1]) for at in changed)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClientSamples:
    """Health of the load generators: one entry for each worker and second, shape (m,)."""

    unix_s: Floats
    worker: Ints
    """Number of each entry's worker, from 0."""
    loop_lag_s: Floats
    """Event-loop lag in seconds: the 99th percentile within the second; the largest value where not
    recorded."""
    loop_lag_max_s: Floats
    """Largest event-loop lag within the second: how long the load generator itself stood still."""
    cpu: Floats
    in_flight: Floats
    """Requests in flight when the entry was written."""

    def __len__(self) -> int:
        return len(self.unix_s)


SCALAR_COLUMNS = (
    "start_unix_s",
    "sent_s",
    "scheduled_unix_s",
    "first_chunk_s",
    "first_answer_s",
    "last_chunk_s",
    "end_s",
    "chunks",
    "first_chunk_tokens",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "http_status",
    "max_tokens",
    "pause_s",
)


def ordered_requests(
    columns: dict[str, Floats],
    *,
    labels: Ints,
    error_texts: Sequence[str],
    gap_s: NDArray[np.float32],
    gaps: Ints,
    class_names: Sequence[str] = (),
    recorded: Floats | None = None,
) -> Requests:
    """Sorts requests, given in any order, by the times of their ends, and returns them as Requests.

    - columns: one array of shape (n,) for each name in SCALAR_COLUMNS.
    - labels: integers of each request, shape (n, 6): outcome code, user, turn, error (an index in
      `error_texts`), class of users (an index in `class_names`, or NO_CLASS), step.
    - gap_s: chunk gaps of all requests. Those of the first request come first, then those of the second.
    - gaps: number of chunk gaps of each request, shape (n,).
    - recorded: for recorded sessions the lateness, the recorded tokens of prompt and answer, and the reusable
      tokens of each request, shape (n, 4); None if no sessions were replayed.
    """
    start = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    if recorded is None:
        recorded = np.full((len(gaps), 4), NAN)
    order = np.argsort(columns["start_unix_s"] + columns["end_s"], kind="stable")
    return Requests(
        **{name: column[order] for name, column in columns.items()},
        outcome=labels[order, 0],
        user=labels[order, 1],
        turn=labels[order, 2],
        error=labels[order, 3],
        user_class=labels[order, 4],
        step=labels[order, 5],
        class_names=tuple(class_names),
        error_texts=tuple(error_texts),
        gap_s=_permuted(gap_s, start, order),
        gap_start=np.concatenate([[0], np.cumsum(gaps[order])]).astype(np.int64),
        longest_gap_s=_longest(gap_s, start, gaps)[order],
        late_s=recorded[order, 0],
        recorded_prompt=recorded[order, 1],
        recorded_output=recorded[order, 2],
        reusable_tokens=recorded[order, 3],
    )


def _longest(gap_s: NDArray[np.float32], start: Ints, gaps: Ints) -> Floats:
    """Returns the longest chunk gap of each request, shape (n,); nan for a request without gaps."""
    longest = np.full(len(gaps), NAN)
    some = np.flatnonzero(gaps)
    if len(some):
        longest[some] = np.maximum.reduceat(gap_s, start[some])
    return longest


def _permuted(gap_s: NDArray[np.float32], start: Ints, order: Ints) -> NDArray[np.float32]:
    """Returns the chunk gaps after the requests are put into another order.

    `start` says where each request's gaps begin in `gap_s`; `order` lists the requests' old positions.
    """
    if np.array_equal(order, np.arange(len(order))):
        return gap_s
    moved = np.empty_like(gap_s)
    at = 0
    for row in order:
        part = gap_s[start[row] : start[row + 1]]
        moved[at : at + len(part)] = part
        at += len(part)
    return moved
