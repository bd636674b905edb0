"""Finds the objectives of latency that even one user alone does not get."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from analysis.answers.sizing import FloatBand, UnmetObjective
from analysis.sizing.engine import SizedEngine
from analysis.sizing.latency.load import simulate_closed_loop
from analysis.sizing.workload import PlannedWorkload
from analysis.walls.names import WallName
from loadtest.record import Slo
from loadtest.workload.classes import users_by_weight

ALONE = 0.1
"""Factor on the requests that are simulated for a user of one class alone: nobody else disturbs them."""


def unmet_objectives(sized: SizedEngine) -> list[UnmetObjective]:
    """Returns the objectives of TTFT and TPOT that are missed with a single user, by the estimate.

    In a mix, a user of each class is simulated alone, unless some users of every class hold together.
    """
    latency = [wall.x for wall in sized.walls if wall.name in ("ttft", "tpot")]
    if sized.curve is None or not latency or min(latency) >= _users_of_every_class(sized.workload):
        return []
    if not sized.workload.is_mix:
        best_s = sized.curve.ttft_s[0], sized.curve.tpot_s[0]
        return list(_missed(sized, best_s, sized.workload.slo, None))
    found: list[UnmetObjective] = []
    for users, slo, chatting in zip(
        sized.workload.classes, sized.workload.slos, sized.service.chatting.kinds, strict=True
    ):
        alone = replace(sized.service, chatting=chatting)
        best_s = simulate_closed_loop(alone, 1, length=ALONE).p95_s()
        found += _missed(sized, best_s, slo, users.name)
    return found


def _users_of_every_class(workload: PlannedWorkload) -> int:
    """Returns the least number of users among which every class has one."""
    weights = [one.weight for one in workload.classes]
    return next(users for users in itertools.count(1) if all(users_by_weight(weights, users)))


def _missed(
    sized: SizedEngine, best_s: tuple[float, float], slo: Slo, user_class: str | None
) -> Iterator[UnmetObjective]:
    """Yields the objectives that a user misses. best_s: p95 of TTFT and of TPOT of this user alone."""
    assert sized.curve is not None
    bands = sized.curve.bands
    asked: list[tuple[WallName, float, float, tuple[float, float]]] = [
        ("ttft", best_s[0], slo.ttft_p95_s, bands.ttft),
        ("tpot", best_s[1], slo.tpot_p95_s, bands.tpot),
    ]
    for name, p95_s, objective_s, factors in asked:
        if p95_s > objective_s:
            band = _band_s(p95_s, factors)
            yield UnmetObjective(name=name, user_class=user_class, objective_s=objective_s, best_s=band)


def _band_s(best_s: float, factors: tuple[float, float]) -> FloatBand:
    return best_s * factors[0], best_s, best_s * factors[1]


def unmet_sentence(unmet: UnmetObjective, *, where: str) -> str:
    """Says which objective is not met, and what would be. where: the cards, such as "1 x L4"."""
    low, best, high = (f"{end_s:.3g}" for end_s in unmet.best_s)
    of_class = f" of class '{unmet.user_class}'" if unmet.user_class else ""
    return (
        f"{unmet.name.upper()} p95 is {best} s at best on {where} (90 %: {low} to {high} s), with one user"
        f"{of_class} alone; at most {unmet.objective_s:g} s is asked."
    )
