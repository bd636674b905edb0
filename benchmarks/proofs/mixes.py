"""How well sweeps of mixes find the maximum, on random services in virtual time.

Each mix has two or three classes of chats, documents and agents, with objectives, pauses and shared texts of
their own. The true maximum is that of a long search in the simulated engine.
"""

import sys

import numpy as np

from analysis.virtual.processes import for_each
from testing.truth.mixes import MixSweep, swept_mix, virtual_mix

MIXES, _SIDE_BY_SIDE = 60, 4


def main() -> None:
    found: list[MixSweep] = []
    for first in range(0, MIXES, _SIDE_BY_SIDE):
        found += for_each(_found, range(first, first + _SIDE_BY_SIDE))
        print(f"\r{len(found)} of {MIXES}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    print("mix     true  wall           class    answer  90 % interval     wall           class")
    for one in found:
        low, high = one.interval
        print(
            f"{one.number:3d}  {one.true_x:7.1f}  {one.wall:13s}  {one.user_class or '':6s} {one.x:8.1f}  "
            f"{low:6.1f} to {high:6.1f}  {one.said_wall:13s}  {one.said_class or ''}"
        )
    for name, some in (
        ("all", found),
        ("memory", [one for one in found if one.wall == "kv_cache"]),
        ("latency", [one for one in found if one.wall in ("ttft", "tpot")]),
    ):
        _summarise(name, some)


def _found(number: int) -> MixSweep:
    return swept_mix(virtual_mix(number), seed=number)


def _summarise(name: str, some: list[MixSweep]) -> None:
    answered = [one for one in some if not np.isnan(one.x)]
    if not answered:
        return
    off = np.log([one.x / one.true_x for one in answered])
    print(
        f"{name:8s} {len(answered)} of {len(some)} answered; ln(answer / true): mean {off.mean():+.3f}, sd "
        f"{off.std():.3f}, {np.mean(np.abs(off) < 0.05):.0%} within 5 %; interval holds the maximum: "
        f"{sum(one.held for one in answered)}; "
        f"wall named: {sum(one.said_wall == one.wall for one in answered)}; "
        f"class named: {sum(one.said_class == one.user_class for one in answered)}"
    )
