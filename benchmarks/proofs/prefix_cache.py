"""How well the prefix-cache wall is predicted, on random services of long conversations in virtual time.

The true wall is the number of users, real-valued, at which the hit rate falls below 0.9 of the hit rate of
one user. It is measured with long levels. Two runs of short levels predict it: one far below the wall, so
that the formula alone decides, and a sweep across the wall.
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
