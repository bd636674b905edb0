"""Pairs of virtual runs; the second run has an engine that is changed by a known amount."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from analysis.compare.sides import MeasuredDeployment, deployment_of
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

GATE_LEVELS, GATE_LEVEL_S = (1, 4, 8, 12, 16, 20), 30.0
CHANGES: dict[str, dict[str, float]] = {
    "pool 20 % smaller": {"num_gpu_blocks": 1 + round(0.8 * 127)},
    "pool 10 % smaller": {"num_gpu_blocks": 1 + round(0.9 * 127)},
    "steps 20 % slower": {"step_base_s": 0.0030, "step_per_seq_s": 0.00018},
    "steps 10 % slower": {"step_base_s": 0.00275, "step_per_seq_s": 0.000165},
    "prefill 50 % slower": {"prefill_per_token_s": 0.000015},
    "prefill 20 % slower": {"prefill_per_token_s": 0.000012},
}
"""Changed fields of the engine, by the name of the change.

The unchanged engine holds 17 users in 127 blocks; a step takes 2.5 ms and 0.15 ms a sequence.
"""


def pair_of(
    pair: int, change: Mapping[str, float], *, level_s: float = GATE_LEVEL_S
) -> tuple[MeasuredDeployment, MeasuredDeployment]:
    """Simulates a baseline and a run of the changed engine, with different seeds.

    The load generator is never late, so the gate excuses no difference by its lag.
    """
    plans = [Plan(levels=GATE_LEVELS, level_s=level_s, seed=2 * pair + side, lag_s=0.0) for side in (0, 1)]
    return _deployment({}, plans[0]), _deployment(change, plans[1])


def _deployment(change: Mapping[str, float], plan: Plan) -> MeasuredDeployment:
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run", small_engine(seed=plan.seed, **change), plan)
        runs = [read_run(found) for found in find_runs(Path(folder))]
    return deployment_of(runs, name="run", slo=Slo())
