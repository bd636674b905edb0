"""Judges one of the two runs of a comparison, and returns its figures with their uncertainty."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import answer_of
from analysis.capacity.headline import CONFIDENCE, headline_of
from analysis.capacity.judgement import Judgement, judge
from analysis.evidence.lengths import LengthPairs
from analysis.levels import definitions as metrics
from analysis.levels.level import Level
from analysis.levels.requests import tpot_of
from analysis.levels.window import ended_inside
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats, Ints
from analysis.statistics.ratios import (
    Quantity,
    Sample,
    Series,
    batch_mean,
    joint_freedom,
    variance_of_runs,
)
from loadtest.record import RunInfo, Slo
from loadtest.simulator.presets import PRESETS, Preset


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeasuredDeployment:
    """One side of a comparison, judged: one run, or several runs that were pooled."""

    name: str
    judgement: Judgement
    answer: ModelAnswer
    preset: Preset | None
    """Preset of an embedded server; None for a real server."""

    @property
    def runs(self) -> Sequence[Run]:
        return self.judgement.evidence.runs

    @property
    def info(self) -> RunInfo:
        """Description of the newest of the pooled runs."""
        return self.runs[-1].info

    @property
    def levels(self) -> Sequence[Level]:
        return self.judgement.evidence.levels

    @property
    def refused(self) -> bool:
        """True if the data cannot support an answer."""
        return self.answer.refused

    def at(self, users: int) -> list[Level]:
        """Returns the trusted levels with `users` users."""
        return [level for level in self.levels if level.trusted and level.users == users]


def deployment_of(
    runs: Sequence[Run], *, name: str, slo: Slo, on_step: Callable[[int], None] = lambda _: None
) -> MeasuredDeployment:
    """Judges runs of one deployment together; the runs must be ones that can be pooled.

    on_step: called with the number of steps done, while the limits (walls) are computed.
    """
    judgement = judge(runs, slo=slo, on_step=on_step)
    preset = _preset_of(runs[-1].info)
    answer = answer_of(judgement, bytes_per_token=_bytes_per_token(runs[-1].info, preset))
    return MeasuredDeployment(name=name, judgement=judgement, answer=answer, preset=preset)


def _preset_of(info: RunInfo) -> Preset | None:
    """Returns the preset of an embedded server; None for a real server.

    If the server was started with its own --gpu-memory-utilization, the preset has this value.
    """
    preset = PRESETS.get(info.server.simulated or "")
    share = info.server.gpu_memory_utilization
    return replace(preset, gpu_memory_utilization=share) if preset and share else preset


def _bytes_per_token(info: RunInfo, preset: Preset | None) -> int | None:
    if info.server.kv_bytes_per_token is None and preset is not None:
        return preset.pool().kv_bytes_per_token
    return info.server.kv_bytes_per_token


def common_levels(a: MeasuredDeployment, b: MeasuredDeployment) -> list[int]:
    """Returns the numbers of users at which both runs have a trusted level, sorted."""
    return sorted(set(a.judgement.evidence.trusted) & set(b.judgement.evidence.trusted))


def latency_sample(side: MeasuredDeployment, users: int, of: Callable[[Requests], Floats]) -> Sample | None:
    """Returns a sample of one value per request, from the trusted levels with `users` users.

    Uses the successful requests that ended while the level was measured (in its window). A level with fewer
    than two such requests is left out. Returns None if no level is left. of: takes the requests of a run and
    returns one value for each.
    """
    by_run = {run.info.run_id: run.requests for run in side.runs}
    found = []
    for level in side.at(users):
        rows = by_run[level.run_id]
        values = of(rows)
        kept = rows.ok & ended_inside(rows, level.window) & ~np.isnan(values)
        if kept.sum() >= 2:
            times = rows.end_unix_s[kept]
            found.append(Series(run=level.run_id, values=values[kept], at_unix_s=times, window=level.window))
    return Sample(series=found) if found else None


def ttft_s_of(rows: Requests) -> Floats:
    """Returns the TTFT of each request, seconds."""
    return metrics.ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)


def decode_tok_s_of(rows: Requests) -> Floats:
    """Returns the decode rate of each request, tokens a second."""
    return metrics.decode_tok_s(tpot_of(rows))


def throughput_of(side: MeasuredDeployment, users: int) -> Quantity | None:
    """Returns the output tokens a second at `users` users, with its uncertainty.

    The value is the mean over the trusted levels with `users` users, weighted by the length of their windows.
    Where several runs were pooled, the uncertainty counts how much they differ. None if there is no such
    level, or if one of them has no output.
    """
    levels = side.at(users)
    if not levels or not all(level.requests.output_tok_s > 0 for level in levels):
        return None
    window_s = np.array([level.window.length_s for level in levels])
    rates = np.array([level.requests.output_tok_s for level in levels])
    own = np.array(
        [max(level.requests.output_tok_se, 1e-9 * level.requests.output_tok_s) for level in levels]
    )
    runs = [level.run_id for level in levels]
    within = float(window_s**2 @ own**2) / float(window_s.sum()) ** 2
    between = variance_of_runs(runs, rates, variances=own**2, sizes=window_s)
    freedom = sum(level.window.batches - 1 for level in levels)
    return batch_mean(
        float(np.average(rates, weights=window_s)),
        se=math.sqrt(within + between[0]),
        freedom=joint_freedom((within, freedom), between),
    )


def capacity_of(side: MeasuredDeployment) -> Quantity | None:
    """Returns the number of users at the limit, with its uncertainty.

    If no limit was found near the measured levels, returns the number of users that are surely held, with no
    upper bound. None if the data cannot support an answer.
    """
    if side.refused:
        return None
    evidence, walls = side.judgement.evidence, side.judgement.walls
    headline = headline_of(evidence, walls, confidence=CONFIDENCE)
    value = headline.estimate_x
    if value is None and headline.interval_x:
        value = headline.interval_x[0]
    if not value:
        return None

    def bounds(error: float) -> tuple[float, float]:
        interval = headline_of(evidence, walls, confidence=1.0 - 2.0 * error).interval_x
        low, high = interval or (0.0, None)  # too few requests to know any number of users so surely
        return low, math.inf if high is None else high

    return Quantity(value=value, bounds=bounds)


def memory_users(side: MeasuredDeployment) -> Quantity | None:
    """Returns the number of users at which the KV cache is the limit, even if another limit comes first.

    None if this number is not known, or if the data cannot support an answer.
    """
    stands = [] if side.refused else [one for one in side.judgement.walls if one.name == "kv_cache"]
    return Quantity(value=stands[0].x, bounds=stands[0].bound) if stands and stands[0].x > 0 else None


def kv_tokens(side: MeasuredDeployment) -> Quantity | None:
    """Returns the mean KV tokens that a request in flight holds, in whole blocks, with its uncertainty.

    It is the mean over all decode steps of all requests, so long answers count more. A shared prefix is
    included in full. The standard error is that of a ratio, with each conversation as one observation.
    None if the lengths or the KV-cache pool are not known.
    """
    pairs, pool = side.judgement.evidence.pairs, side.judgement.evidence.pool
    if pairs is None or pool is None:
        return None
    held, steps = held_tokens(pairs, block_tokens=pool.block_tokens)
    mean = float(held.sum() / steps.sum())
    off = np.bincount(pairs.conversation, weights=held - mean * steps)
    se = math.sqrt(float(off @ off)) / float(steps.sum())
    return batch_mean(mean + pairs.shared_prefix, se=se, freedom=len(off) - 1)


def held_tokens(pairs: LengthPairs, *, block_tokens: int) -> tuple[Floats, Floats]:
    """Returns two arrays of shape (n,), one value per request.

    - First array: the KV tokens of the request, in whole blocks, added up over its decode steps. Whole blocks
      of the shared prefix are not counted.
    - Second array: the number of decode steps of the request.
    """
    shared = pairs.shared_prefix // block_tokens * block_tokens
    prompt = np.maximum(pairs.prompt - shared, 1)

    def blocks_up_to(length: Ints) -> Floats:
        whole, rest = np.divmod(length, block_tokens)
        return np.asarray(block_tokens * whole * (whole + 1) / 2 + rest * (whole + 1))

    blocks = blocks_up_to(prompt + pairs.output - 1) - blocks_up_to(prompt - 1)
    return block_tokens * blocks, pairs.output.astype(np.float64)


def scaled_quantity(quantity: Quantity | None, factor: float | None) -> Quantity | None:
    """Returns the quantity multiplied by `factor`, or None if one of the two is None. The factor is taken as
    exact, so the bounds are multiplied by it too."""
    if quantity is None or factor is None:
        return None

    def bounds(error: float) -> tuple[float, float]:
        low, high = quantity.bounds(error)
        return low * factor, high * factor

    return Quantity(value=quantity.value * factor, bounds=bounds)
