"""Finds the objectives of latency that even one user alone does not get."""

from analysis.answers.sizing import FloatBand, UnmetObjective
from analysis.sizing.engine import SizedEngine
from analysis.walls.names import WallName


def unmet_objectives(sized: SizedEngine) -> list[UnmetObjective]:
    """Returns the objectives of TTFT and TPOT that are missed with a single user, by the estimate.

    The times of one user are those of the curve's least number of users.
    """
    if sized.curve is None:
        return []
    curve, slo = sized.curve, sized.workload.slo
    alone: dict[WallName, tuple[float, float, tuple[float, float]]] = {
        "ttft": (slo.ttft_p95_s, curve.ttft_s[0], curve.bands.ttft),
        "tpot": (slo.tpot_p95_s, curve.tpot_s[0], curve.bands.tpot),
    }
    return [
        UnmetObjective(name=wall.name, objective_s=objective_s, best_s=_band_s(best_s, factors))
        for wall in sized.walls
        if wall.x < 1 and wall.name in alone
        for objective_s, best_s, factors in [alone[wall.name]]
    ]


def _band_s(best_s: float, factors: tuple[float, float]) -> FloatBand:
    return best_s * factors[0], best_s, best_s * factors[1]


def unmet_sentence(unmet: UnmetObjective, *, where: str) -> str:
    """Says which objective is not met, and what would be. where: the cards, such as "1 x L4"."""
    low, best, high = (f"{end_s:.3g}" for end_s in unmet.best_s)
    return (
        f"{unmet.name.upper()} p95 is {best} s at best on {where} (90 %: {low} to {high} s), with one user "
        f"alone; at most {unmet.objective_s:g} s is asked."
    )
