"""GPU time against error: our search, and the usual ways to find a maximum, on the same random deployments in
virtual time. What was measured is kept in benchmarks/data/search_cost.jsonl; ours is from `coverage`."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from analysis.search.advice import FIRST_USERS
from benchmarks.proofs import coverage
from benchmarks.proofs.kept import DATA, Row, measure_missing
from testing.truth.deployments import deployment
from testing.truth.methods import MethodResult, bisection, fixed_sweep

_DEPLOYMENTS = 80  # the first of those that were searched
_KEPT = DATA / "search_cost.jsonl"
BUDGETS = (0.1, 0.2, 0.4, 0.8)  # of our search, in the time of a bisection with 300 requests a probe
UNIT = "bisection, 300 a probe"
METHODS: Mapping[str, Callable[[int], MethodResult]] = {
    "bisection, 100 a probe": lambda number: bisection(deployment(number), requests=100),
    UNIT: lambda number: bisection(deployment(number), requests=300),
    "bisection, 2000 a probe": lambda number: bisection(deployment(number), requests=2000),
    "bisection, 2 a user": lambda number: bisection(deployment(number), requests=0, a_user=2),
    "bisection, 20 a user": lambda number: bisection(deployment(number), requests=0, a_user=20),
    "sweep by 2, 300 a level": lambda number: fixed_sweep(deployment(number), ratio=2.0, requests=300),
    "sweep by 1.4, 300 a level": lambda number: fixed_sweep(deployment(number), ratio=1.4, requests=300),
    "sweep by 1.1, 300 a level": lambda number: fixed_sweep(deployment(number), ratio=1.1, requests=300),
}


def main() -> None:
    """Measures what is missing and prints each method's cost and error."""
    searched = [row for row in coverage.known_rows() if row["resolved"] and row.get("search")]
    ours = {row["number"]: row for row in searched[:_DEPLOYMENTS]}
    rows = measure_missing(_KEPT, ours, measure_methods)
    _report(
        [ours[number] | rows[number] for number in ours if ours[number]["truth"]["wall"] != "max_num_seqs"]
    )


def measure_methods(number: int) -> Row:
    """Every usual method on one deployment. Deterministic by number."""
    found = {name: method(number) for name, method in METHODS.items()}
    return {
        "number": number,
        "methods": {name: [round(one.gpu_s, 1), one.x, one.users] for name, one in found.items()},
    }


def _report(rows: Sequence[Row]) -> None:
    """Prints mean GPU time, in the time of UNIT on the same deployment, and error of ln x; and what bisection
    would cost at our errors. Without deployments whose wall is the slots, which the usual methods do not see.
    """
    print(f"search_cost: {len(rows)} deployments; GPU time in that of a {UNIT}; error: rms of ln(x / true x)")
    curve = []
    for name in METHODS:
        cost, error = _cost_and_error([_of_method(row, name) for row in rows])
        print(f"  {name:<28} time {cost:5.2f}  error {100 * error:5.1f} %  {_too_many(rows, name)}")
        if name.startswith("bisection") and name.endswith("a probe"):
            curve.append((error, cost))
    for budget in BUDGETS:
        cost, error = _cost_and_error([_ours(row, budget) for row in rows])
        ratio = cost / _interpolated(curve, error)
        print(
            f"  {'our search, until ' + str(budget):<28} time {cost:5.2f}  error {100 * error:5.1f} %"
            f"  {ratio:.2f} of a bisection of this error"
        )
    cost, error = _cost_and_error([_ours(row, math.inf) for row in rows])
    print(
        f"  {'our search, to its end':<28} time {cost:5.2f}  error {100 * error:5.1f} %"
        f"  {cost / _interpolated(curve, error):.2f} of a bisection of this error"
    )


Point = tuple[float, float]
"""GPU time in units, and ln(x / true x)."""


def _of_method(row: Row, name: str) -> Point:
    seconds, x, _ = row["methods"][name]
    return seconds / row["methods"][UNIT][0], math.log(x / row["truth"]["x"])


def _ours(row: Row, budget: float) -> Point:
    """What it said last within the budget, which it may not have used up; in the end its answer."""
    unit_s, search = row["methods"][UNIT][0], row["search"]
    curve = search["curve"]
    if math.isinf(budget):
        return search["gpu_s"] / unit_s, math.log((search["x"] or search["max_users"]) / row["truth"]["x"])
    within = [(at, x) for at, x in curve if x is not None and at <= budget * unit_s]
    at, x = within[-1] if within else (curve[0][0], float(FIRST_USERS))
    spent_s = min(max(at, budget * unit_s), curve[-1][0])
    return spent_s / unit_s, math.log(max(x, 0.5) / row["truth"]["x"])


def _cost_and_error(points: Sequence[Point]) -> Point:
    cost, error = np.array(points).T
    return float(cost.mean()), math.sqrt(float(np.mean(error**2)))


def _interpolated(curve: Sequence[Point], error: float) -> float:
    """Cost at an error, straight in logarithms between the two nearest points, and beyond them."""
    places = sorted(curve)
    if len(places) < 2:
        return math.nan
    at = min(max(sum(place[0] < error for place in places), 1), len(places) - 1)
    (e0, c0), (e1, c1) = places[at - 1], places[at]
    share = math.log(error / e0) / math.log(e1 / e0) if e1 != e0 else 0.0
    return float(c0 * (c1 / c0) ** share)


def _too_many(rows: Sequence[Row], name: str) -> str:
    """How often the whole number of users that it recommends is more than 5 % too many."""
    over = sum(row["methods"][name][2] > 1.05 * math.floor(row["truth"]["x"]) for row in rows)
    return f"more than 5 % too many: {100 * over / max(len(rows), 1):.0f} %"
