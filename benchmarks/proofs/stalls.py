"""How well sweeps place the wall of stalls, on random services in virtual time.

Each service answers short chats and, now and then, a long prompt. The true wall is the number of users at
which 5 % of the answers stand still for longer than the objective, measured with long levels.
"""

import sys

import numpy as np

from testing.truth.stalling import StallSweep, stalling_service, swept

SERVICES, SWEEPS = 12, 5


def main() -> None:
    found: list[StallSweep] = []
    for seed in range(SERVICES):
        one = stalling_service(seed)
        found += [swept(one, seed=sweep) for sweep in range(SWEEPS)]
        print(f"\r{seed + 1} of {SERVICES}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    placed = [one for one in found if not np.isnan(one.x)]
    true, x = np.array([one.true for one in placed]), np.array([one.x for one in placed])
    off = np.log(x / true)
    ends = np.array([one.interval for one in placed])
    covered = (ends[:, 0] <= true) & (true <= ends[:, 1])
    p5, median, p95 = np.quantile(off, [0.05, 0.5, 0.95])
    print(
        f"stalls: {SERVICES} services whose true walls lie at {true.min():.0f} to {true.max():.0f} users, "
        f"{SWEEPS} sweeps of each\n"
        f"  placed by {len(placed)} of {len(found)} sweeps, named by {sum(one.named for one in found)}; "
        f"ln(x / true): mean {off.mean():+.3f}, median {median:+.3f}, sd {off.std():.3f}, p5 {p5:+.3f}, "
        f"p95 {p95:+.3f}; 90 % interval holds it: {covered.sum()} of {len(placed)}"
    )
