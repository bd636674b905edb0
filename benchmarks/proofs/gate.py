"""How often `python -m analysis.compare --gate` fails on virtual runs, without and with known changes."""

import sys
from collections import Counter
from collections.abc import Mapping

from analysis.answers.compare import GateAnswer
from analysis.compare.gate import TOLERANCE, gate_of
from testing.truth.gate_pairs import CHANGES, GATE_LEVEL_S, GATE_LEVELS, pair_of

_PAIRS, CHANGED_PAIRS = 120, 40
CRITERIA = ("max_users", "ttft_p95_s", "tpot_p95_s", "output_tok_s")


def main() -> None:
    """Prints the number of pairs that failed the gate, in total and by criterion, for each change."""
    levels = ", ".join(map(str, GATE_LEVELS))
    print(f"gate: levels of {levels} users, {GATE_LEVEL_S:.0f} s each, every run with a seed of its own")
    _print("no change", {}, _PAIRS)
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
