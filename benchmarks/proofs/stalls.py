"""How well sweeps place the wall of stalls, on random services in virtual time.

Each service answers short chats and, now and then, a long prompt. The true wall is the number of users at
which 5 % of the answers stand still for longer than the objective, measured with long levels.
"""

import sys

import numpy as np

from testing.truth.stalling import StallSweep, stalling_service, swept

STALLING_SERVICES, SWEEPS = 12, 5


def main() -> None:
    found: list[StallSweep] = []
    for seed in range(STALLING_SERVICES):
        one = stalling_service(seed)
        found += [swept(one, seed=sweep) for sweep in range(SWEEPS)]
        print(f"\r{seed + 1} of {STALLING_SERVICES}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    placed = [one for one in found if not np.isnan(one.x)]
    true, ends = np.array([one.true for one in placed]), np.array([one.interval for one in placed])
    covered = (ends[:, 0] <= true) & (true <= ends[:, 1])
    print(
        f"stalls: {STALLING_SERVICES} services whose true walls lie at {true.min():.0f} to {true.max():.0f} "
        f"users, {SWEEPS} sweeps of each\n"
        f"  placed by {len(placed)} of {len(found)} sweeps, named as the limit by "
        f"{sum(one.named for one in found)}; 90 % interval holds it: {covered.sum()} of {len(placed)}"
    )
    for name, x in (
        ("share of misses", [one.x for one in placed]),
        ("line of p95s", [one.by_p95_x for one in placed]),
    ):
        off = np.log(np.array(x) / true)
        print(f"  {name:<16} ln(x / true): mean {off.mean():+.3f}, sd {off.std():.3f}")
