"""GPU time and error of our search and of the usual methods, on the same random deployments in virtual time.

Rows of the usual methods are in benchmarks/data/search_cost.jsonl; those of our search in coverage.jsonl.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from analysis.search.advice import FIRST_USERS
from benchmarks.proofs import coverage
from benchmarks.proofs.kept import DATA, Row, measure_missing
from testing.truth.deployments import deployment
from testing.truth.methods import MethodResult, bisection, fixed_sweep

_DEPLOYMENTS = 80  # the first ones on which our search ran
_KEPT = DATA / "search_cost.jsonl"
BUDGETS = (0.1, 0.2, 0.4, 0.8)  # GPU time of our search, in multiples of UNIT's
UNIT = "bisection, 300 a probe"  # the method whose GPU time is the unit of cost
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
    """Measures the rows that are missing and prints the cost and error of each method."""
    searched = [row for row in coverage.known_rows() if row["resolved"] and row.get("search")]
    ours = {row["number"]: row for row in searched[:_DEPLOYMENTS]}
    rows = measure_missing(_KEPT, ours, measure_methods)
    _report(
        [ours[number] | rows[number] for number in ours if ours[number]["truth"]["wall"] != "max_num_seqs"]
    )


def measure_methods(number: int) -> Row:
    """Measures every usual method on one deployment. The number is the seed."""
    found = {name: method(number) for name, method in METHODS.items()}
    return {
        "number": number,
        "methods": {name: [round(one.gpu_s, 1), one.x, one.users] for name, one in found.items()},
    }


def _report(rows: Sequence[Row]) -> None:
    """Prints the mean GPU time and the rms error of ln x of each method.

    Times are in multiples of UNIT's on the same deployment.

    For our search it also prints the cost as a share of a bisection with the same error. `rows` are
    deployments whose limit is not max_num_seqs, which the usual methods do not detect.
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
"""A cost (GPU time in multiples of UNIT's) and an error (ln(x / true x), or its rms over deployments)."""


def _of_method(row: Row, name: str) -> Point:
    seconds, x, _ = row["methods"][name]
    return seconds / row["methods"][UNIT][0], math.log(x / row["truth"]["x"])


def _ours(row: Row, budget: float) -> Point:
    """Returns cost and error of our search's last estimate within the budget.

    The budget is in multiples of UNIT's time; if it is infinite, the estimate is the final answer.
    """
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
    """Interpolates the cost at an error in logarithms from the two nearest points; nan for fewer."""
    places = sorted(curve)
    if len(places) < 2:
        return math.nan
    at = min(max(sum(place[0] < error for place in places), 1), len(places) - 1)
    (e0, c0), (e1, c1) = places[at - 1], places[at]
    share = math.log(error / e0) / math.log(e1 / e0) if e1 != e0 else 0.0
    return float(c0 * (c1 / c0) ** share)


def _too_many(rows: Sequence[Row], name: str) -> str:
    """Formats the share of deployments for which the method recommends more than 1.05 N* users."""
    over = sum(row["methods"][name][2] > 1.05 * math.floor(row["truth"]["x"]) for row in rows)
    return f"more than 5 % too many: {100 * over / max(len(rows), 1):.0f} %"
