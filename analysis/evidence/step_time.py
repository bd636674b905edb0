"""How long a step of the engine takes, from throughput and TTFT of levels in which no request waited."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from analysis.levels.definitions import ttft_s
from analysis.levels.level import Level
from analysis.levels.queues import QUEUE_LIMIT
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Duration of a step with n sequences, prefill included: tau = base + per_sequence * n.

    The throughput is X = n / tau.
    """

    base_s: float
    per_sequence_s: float
    """beta = b + c mu + d E[uncached prompt]/E[o] (docs/method.md). One mix of lengths tells only the sum."""

    @property
    def knee(self) -> float:
        """Number of sequences at which the throughput X reaches 90 % of its limit 1/beta."""
        return 9.0 * self.base_s / self.per_sequence_s if self.per_sequence_s > 0 else math.inf

    def output_tok_s(self, sequences: float) -> float:
        """Returns X, the output tokens per second, with this many sequences in flight."""
        return sequences / (self.base_s + self.per_sequence_s * sequences)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """Duration of a step: base + per_seq * (sequences) + prefill_per_token * (prompt tokens in the step)."""

    step_base_s: float
    step_per_seq_s: float
    prefill_per_token_s: float | None
    """Seconds for each prompt token; None where unknown: then `step_per_seq_s` includes them."""
    knee: float

    def per_engine(self, engines: int) -> "StepCost":
        """Returns the step cost of one of `engines` equal engines, where n counts only its own sequences."""
        return replace(self, step_per_seq_s=self.step_per_seq_s * engines)


def step_cost_of(
    runs: Sequence[Run], levels: Sequence[Level], *, uncached_prompt: float, output: float
) -> StepCost | None:
    """Fits the cost of a step to the levels; None where `step_time` finds no fit.

    The base and the cost per sequence come from throughput at different numbers of users. The prefill cost
    comes from TTFT at different prompt lengths. uncached_prompt, output: mean tokens of a request.
    """
    step = step_time(levels)
    if step is None:
        return None
    prefill = prefill_per_token_s(runs, levels)
    if prefill is not None:
        # Waiting for other prompts looks like a request's own prefill. All prefill is in beta: a limit.
        prefill = min(prefill, step.per_sequence_s * output / max(uncached_prompt, 1.0))
    riding = prefill * uncached_prompt / output if prefill is not None else 0.0
    return StepCost(
        step_base_s=step.base_s,
        step_per_seq_s=step.per_sequence_s - riding,
        prefill_per_token_s=prefill,
        knee=step.knee,
    )


def is_free(level: Level) -> bool:
    """Returns whether a level is trusted and had hardly any queue for KV blocks or for `max_num_seqs` slots.

    Where it is unknown whether requests waited for blocks, any waiting request counts.
    """
    waited = level.server.blocked.fraction if level.server.blocked else level.server.waiting_fraction
    queued = level.server.queue.fraction > QUEUE_LIMIT
    return level.trusted and not queued and not waited > 0.1


def step_time(levels: Sequence[Level]) -> StepTime | None:
    """Fits the step time n/X as a straight line in n, by least squares, over the levels without a queue.

    n is the number of requests in flight, and X the output tokens per second. None with fewer than two
    numbers of users, or where the fitted base is 0.
    """
    free = [level for level in levels if is_free(level) and level.requests.output_tok_s > 0]
    if len({level.users for level in free}) < 2:
        return None
    n = np.array([level.in_flight for level in free])
    x = np.array([level.requests.output_tok_s for level in free])
    error = (
        np.array([max(level.requests.output_tok_se / level.requests.output_tok_s, 0.01) for level in free])
        * n
        / x
    )
    design = np.column_stack([np.ones(len(n)), n]) / error[:, None]
    (base, slope), _ = optimize.nnls(design, n / x / error)
    return StepTime(base_s=float(base), per_sequence_s=float(slope)) if base > 0 else None


def prefill_per_token_s(runs: Sequence[Run], levels: Sequence[Level]) -> float | None:
    """Returns how much TTFT grows with each uncached prompt token, in seconds: the slope of a linear fit.

    The fit begins with the levels of the fewest users. Levels with more users are added until the slope is
    significant. None if the slope is not significant even with all levels.
    """
    free = [level for level in levels if is_free(level)]
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
                inside = known & (rows.end_unix_s >= level.window.begin_unix_s)
                inside &= rows.end_unix_s < level.window.end_unix_s
                prompt.append((rows.prompt_tokens - np.nan_to_num(rows.cached_tokens))[inside])
                ttft.append(ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)[inside])
    return np.concatenate(prompt), np.concatenate(ttft)
