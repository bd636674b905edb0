"""The prefix-cache wall of random services of long conversations, against the engine in virtual time.

The truth: the users, real-valued, at which the hit rate of long levels falls below 0.9 of one user's.
Beside it what a run of short levels says: from levels far below the wall, where the formula speaks alone, and
from a sweep across it.
"""

import sys
from collections.abc import Sequence

import numpy as np

from testing.truth.prefix_services import Case, compare

SERVICES = 36


def main() -> None:
    cases = []
    for seed in range(SERVICES):
        cases.append(compare(seed))
        print(f"\r{seed + 1} of {SERVICES}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    print(f"prefix_cache: {len(cases)} services whose true walls lie at {_span(cases)} users")
    for name, walls in (
        ("formula alone", [case.formula for case in cases]),
        ("sweep across it", [case.swept for case in cases]),
    ):
        true = np.array([case.true for case in cases])
        x = np.array([wall.x for wall in walls])
        off = np.log(x / true)
        ends = np.array([np.quantile(wall.draws, [0.05, 0.95]) for wall in walls])
        covered = (ends[:, 0] <= true) & (true <= ends[:, 1])
        close = np.abs(x - true) <= np.maximum(1.0, 0.05 * true)
        p5, median, p95 = np.quantile(off, [0.05, 0.5, 0.95])
        print(
            f"  {name:<16} ln(x / true): median {median:+.3f}, sd {off.std():.3f}, p5 {p5:+.3f}, "
            f"p95 {p95:+.3f}; within 1 user or 5 %: {close.sum()} of {len(cases)}; 90 % interval holds it: "
            f"{covered.sum()}"
        )


def _span(cases: Sequence[Case]) -> str:
    return f"{min(case.true for case in cases):.0f} to {max(case.true for case in cases):.0f}"
