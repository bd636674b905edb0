"""How often `python -m analysis.compare --gate` alarms falsely, and what it catches, over virtual runs."""

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from analysis.answers.compare import GateAnswer
from analysis.compare.gate import TOLERANCE, gate_of
from analysis.compare.sides import MeasuredDeployment, deployment_of
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Slo
from tests.virtual_runs import Plan, small_engine, write_run

LEVELS, LEVEL_S = (1, 4, 8, 12, 16, 20), 30.0
PAIRS, CHANGED_PAIRS = 120, 40
CHANGES: dict[str, dict[str, float]] = {
    "pool 20 % smaller": {"num_gpu_blocks": 1 + round(0.8 * 127)},
    "pool 10 % smaller": {"num_gpu_blocks": 1 + round(0.9 * 127)},
    "steps 20 % slower": {"step_base_s": 0.0030, "step_per_seq_s": 0.00018},
    "steps 10 % slower": {"step_base_s": 0.00275, "step_per_seq_s": 0.000165},
    "prefill 50 % slower": {"prefill_per_token_s": 0.000015},
    "prefill 20 % slower": {"prefill_per_token_s": 0.000012},
}
"""Of an engine that holds 17 users in 127 blocks, whose steps take 2.5 ms and 0.15 ms a sequence."""
CRITERIA = ("max_users", "ttft_p95_s", "tpot_p95_s", "output_tok_s")


def run() -> None:
    """Prints the share of pairs in which the gate failed, in all and for each criterion."""
    levels = ", ".join(map(str, LEVELS))
    print(f"gate: levels of {levels} users, {LEVEL_S:.0f} s each, every run with a seed of its own")
    _print("no change", {}, PAIRS)
    for name, change in CHANGES.items():
        _print(name, change, CHANGED_PAIRS)


def _print(name: str, change: Mapping[str, float], pairs: int) -> None:
    found: dict[float, Counter[str]] = {TOLERANCE: Counter(), 0.0: Counter()}
    for pair in range(pairs):
        baseline, changed = pair_of(pair, change)
        for tolerance, counts in found.items():
            counts.update(_verdicts(gate_of(baseline, changed, tolerance=tolerance)))
        print(f"\r{pair + 1} of {pairs}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    for tolerance, counts in found.items():
        by = ", ".join(f"{figure} {counts[figure]}" for figure in CRITERIA)
        print(
            f"  {name:<20} tolerance {tolerance:.2f}: {counts['worse']:>3} of {pairs} failed ({by}), "
            f"{counts['unclear']} without a verdict",
            flush=True,
        )


def _verdicts(gate: GateAnswer) -> list[str]:
    return [gate.verdict, *(one.figure for one in gate.criteria if one.verdict == "worse")]


def pair_of(
    pair: int, change: Mapping[str, float], *, level_s: float = LEVEL_S
) -> tuple[MeasuredDeployment, MeasuredDeployment]:
    """A baseline and a run of the changed engine, from seeds of their own. The load generator is never late,
    so that nothing is let pass for it."""
    plans = [Plan(levels=LEVELS, level_s=level_s, seed=2 * pair + side, lag_s=0.0) for side in (0, 1)]
    return _deployment({}, plans[0]), _deployment(change, plans[1])


def _deployment(change: Mapping[str, float], plan: Plan) -> MeasuredDeployment:
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run", small_engine(seed=plan.seed, **change), plan)
        runs = [read_run(found) for found in find_runs(Path(folder))]
    return deployment_of(runs, name="run", slo=Slo())
