"""Computes from a load test how much longer requests take than predicted, for `--calibrate`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.evidence.lengths import LengthPairs
from analysis.evidence.step_time import is_free
from analysis.levels.level import Level
from analysis.reading.runs import find_runs, read_run
from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.engine import expected_engine
from analysis.sizing.latency.steady import SteadyLoad, means_s
from analysis.sizing.workload import PlannedClass, PlannedWorkload
from loadtest.model.step_time import PredictedStepTime
from loadtest.record import Slo
from loadtest.workload.distributions import Distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredTimes:
    """How many times as long as predicted the requests of a run took, and at which numbers of users."""

    factor: float | None
    """None where the run does not tell."""
    users: Sequence[int] = ()
    why_not: str = ""
    """Why the run does not tell, as the end of a sentence."""


def measured_times(folder: Path, started: PlannedDeployment, slo: Slo) -> MeasuredTimes:
    """Compares the durations of requests in the newest run with those predicted for its deployment.

    By Little's law the mean duration is the number of requests in flight divided by their rate. Levels in
    which requests queued are left out: there, waiting is not the time of steps. The factor is the geometric
    mean over the levels. started: the deployment that the run loaded. Raises InputError for a run that cannot
    be read, and ValueError if nothing of the card is left for the KV cache.
    """
    run = read_run(find_runs(folder)[-1])
    evidence = gather_evidence([run], slo=slo)
    why_not = _why_not(evidence)
    if why_not:
        return MeasuredTimes(factor=None, why_not=why_not)
    pairs = evidence.pairs
    assert pairs is not None
    never = Distribution.parse("0")
    users = PlannedClass(
        prompt=pairs.prompt,
        output=pairs.output,
        conversation=pairs.conversation,
        tool_follows=np.zeros(len(pairs), dtype=np.bool_),
        think=never,
        tool=never,
    )
    workload = PlannedWorkload(classes=[users], slo=slo)
    steps = expected_engine(started, workload).steps
    engines = evidence.pool.engines if evidence.pool else 1
    free = [level for level in evidence.levels if _is_measured(level)]
    output = float(pairs.output.mean())
    factors = []
    for level in free:
        taken_s = level.in_flight * output / level.requests.output_tok_s
        in_flight = level.in_flight / engines
        factors.append(taken_s / _predicted_s(steps, started, workload, pairs, level, in_flight=in_flight))
    factor = math.exp(float(np.mean(np.log(factors))))
    return MeasuredTimes(factor=factor, users=sorted({level.users for level in free}))


def _why_not(evidence: Evidence) -> str:
    if evidence.open_loop:
        return "it is an open loop, which has no levels"
    if evidence.pairs is None:
        return "it has too few finished requests with token counts"
    if evidence.gathered:
        return "something gathered the tokens on their way"
    if not any(_is_measured(level) for level in evidence.levels):
        return "it has no trusted level in which hardly any request queued"
    return ""


def _is_measured(level: Level) -> bool:
    return is_free(level) and level.requests.output_tok_s > 0 and level.in_flight > 0


def _predicted_s(
    steps: PredictedStepTime,
    started: PlannedDeployment,
    workload: PlannedWorkload,
    pairs: LengthPairs,
    level: Level,
    *,
    in_flight: float,
) -> float:
    """Returns the predicted mean duration of a request, seconds, at this many requests in flight in an
    engine."""
    output, prompt = float(pairs.output.mean()), float(pairs.prompt.mean())
    hits = level.server.prefix_hit_rate
    cached = pairs.shared_prefix if math.isnan(hits) else hits * prompt
    # The prompt whose context, with half of the mean answer, is what a request holds on average over steps.
    held = workload.mean_held_tokens - output / 2
    load = SteadyLoad(
        prompt=held,
        output=output,
        users=max(in_flight, 1.0),
        rate=None,
        max_num_seqs=started.max_num_seqs,
        max_num_batched_tokens=started.max_num_batched_tokens,
        together=False,
    )
    ttft_s, tpot_s = means_s(steps, load, computed=max(prompt - cached, 1.0) / held)
    return ttft_s + (output - 1.0) * tpot_s
