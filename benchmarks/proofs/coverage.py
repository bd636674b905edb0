"""How often the interval covers the true maximum, over random deployments in virtual time.

Both sweeps and searches are analysed. Rows in benchmarks/data are not measured again; all of them together
take about three hours of one core.
"""

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.reporting.words import sentences
from benchmarks.proofs.kept import DATA, Row, measure_missing, read_rows
from testing.truth.binding import EACH, FIRST, KINDS, Kind, numbered_deployment
from testing.truth.methods import answer_duration_s, judged_estimate, search, sweep
from testing.truth.truths import Truth, sought_se, truth_of

TRUTHS, _KEPT = DATA / "truths.jsonl", DATA / "coverage.jsonl"
_DEPLOYMENTS = 540  # deployments of any kind
_AIMED: Mapping[Kind, int] = {"ttft": 88, "errors": 75, "timeouts": 98, "throughput": 70, "max_num_seqs": 62}
"""Deployments of each kind whose wall was aimed at."""
UNSEEN = range(387, _DEPLOYMENTS)  # not used to make the rules, except one of them: docs/benchmarks.md
SEARCHED = {*range(90), *UNSEEN}  # deployments on which the search runs too
_BUDGET_S, BUDGET_ANSWERS = 900.0, 150.0  # a search may take the larger: seconds; response times
TRUTH_SHARE = 0.2  # a truth is sharp if its error is at most this share of the interval's
ONE_SIDED = 1.645  # standard errors from the middle to an end of a 90 % interval
OVER = 1.05  # times N*: a larger `max_users` is counted as too many


def main() -> None:
    """Measures the rows that are missing and prints the table."""
    truths = measure_missing(TRUTHS, numbers(), measure_truth)
    measure_missing(_KEPT, [number for number in numbers() if truths[number]["resolved"]], measure_answers)
    _report(known_rows())


def numbers() -> list[int]:
    """Returns the numbers of all deployments: first those whose wall was aimed at, one of each kind in
    turn."""
    aimed = [
        FIRST + EACH * KINDS.index(kind) + place
        for place in range(max(_AIMED.values()))
        for kind, count in _AIMED.items()
        if place < count
    ]
    return [*aimed, *range(_DEPLOYMENTS)]


def known_rows() -> list[Row]:
    """Reads all deployments whose truth was measured, each with its answers where these were measured too."""
    said = read_rows(_KEPT)
    return [truth | said.get(number, {}) for number, truth in sorted(read_rows(TRUTHS).items())]


def measure_truth(number: int) -> Row:
    """Measures the true maximum of one deployment. The number is the seed."""
    one = numbered_deployment(number)
    truth = truth_of(one)
    return {
        "number": number,
        "date": _today(),
        "kind": one.kind,
        "traits": {name: round(value, 4) for name, value in one.traits.items()},
        "life_s": round(answer_duration_s(one), 3),
        "truth": _rounded(truth) if truth is not None else None,
        "resolved": truth is not None and truth.resolved,
    }


def _rounded(truth: Truth) -> Row:
    crossings = {wall: round(x, 3) for wall, x in truth.crossings.items()}
    return asdict(truth) | {"x": round(truth.x, 4), "se": round(truth.se, 5), "crossings": crossings}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def measure_answers(number: int) -> Row:
    """Measures the answers of sweep and search for one deployment. The number is the seed."""
    one = numbered_deployment(number)
    load, answer = sweep(one)
    row: Row = {
        "number": number,
        "date": _today(),
        "sweep": _said(answer, gpu_s=load.now_s, requests=load.ended),
    }
    if number in SEARCHED:
        curve = []
        for load, seen in search(one, budget_s=max(_BUDGET_S, BUDGET_ANSWERS * answer_duration_s(one))):
            x = judged_estimate(seen)
            curve.append((round(load.now_s, 1), None if math.isnan(x) else round(x, 3)))
        load.finish()
        final = recommend([load.run()], slo=one.slo)
        row["search"] = _said(final, gpu_s=load.now_s, requests=load.ended) | {"curve": curve}
    return row


def _said(answer: ModelAnswer, *, gpu_s: float, requests: int) -> Row:
    low, high = answer.headline.interval_x or (None, None)
    return {
        "refused": sentences(answer.reasons),
        "at_least": answer.headline.at_least,
        "x": answer.headline.estimate_x,
        "low": low,
        "high": high,
        "max_users": answer.headline.max_users,
        "binding": answer.headline.binding,
        "bounds": {one.name: [one.users_x, *one.interval_x] for one in answer.bounds},
        "gpu_s": round(gpu_s, 1),
        "requests": requests,
    }


def _report(found: Sequence[Row]) -> None:
    """Prints how many deployments there are, and a table for sweeps and one for searches."""
    known = [row for row in found if row["resolved"] and row.get("sweep")]
    unknown = Counter(
        "no truth" if row["truth"] is None else "truth not resolved" for row in found if not row["resolved"]
    )
    print(f"coverage: {len(found)} random deployments, {len(known)} with a known maximum; {dict(unknown)}")
    for name in ("sweep", "search"):
        some = [row for row in known if row.get(name)]
        if some:
            print(f"  {name}: {len(some)} deployments")
            for text in _table(some, name):
                print(f"    {text}")


def _table(rows: Sequence[Row], name: str) -> Iterator[str]:
    refused = [row for row in rows if row[name]["refused"]]
    judged = [row for row in rows if not row[name]["refused"]]
    closed = [row for row in judged if not row[name]["at_least"]]
    yield f"refused {_share(len(refused), len(rows))}"
    yield f"no wall met, at least N: {_share(len(judged) - len(closed), len(rows))}"
    for what, some in (
        ("all deployments; an error of the truth can count as a miss", closed),
        (f"deployments from {UNSEEN.start} on, first looked at after the rules were made", _unseen(closed)),
        ("deployments whose truth is known best", [row for row in closed if _is_known_best(row)]),
        (
            "deployments whose truth has an error below a fifth of the interval's",
            [row for row in closed if _sharp(row, name)],
        ),
    ):
        sides = [_side(row, name) for row in some]
        yield f"the 90 % interval covers x* ({what}): {_share(sides.count(0), len(sides))}"
        yield f"  x* is below it: {_share(sides.count(-1), len(sides))}"
        yield f"  x* is above it: {_share(sides.count(1), len(sides))}"
    true = np.array([math.floor(row["truth"]["x"]) for row in judged])
    said = np.array([row[name]["max_users"] for row in judged])
    yield f"max_users above 1.05 N*: {_share(int(np.sum(said > OVER * true)), len(judged))}"
    lost = true - said
    yield f"N* - max_users, median: {np.median(lost):.1f} users, {100 * np.median(lost / true):.1f} %"
    sure = [row for row in judged if row[name]["x"] is not None]
    off = np.array([row[name]["x"] / row["truth"]["x"] - 1.0 for row in sure])
    close = sum(_close(math.floor(row[name]["x"]), math.floor(row["truth"]["x"])) for row in sure)
    rms = math.sqrt(float(np.mean(off**2)))
    yield f"estimate within 1 user or 5 % of N*: {_share(close, len(sure))}"
    yield f"error of estimate_x: median {100 * np.median(off):+.1f} %, rms {100 * rms:.1f} %"
    yield f"the binding wall is named rightly: {_share(sum(_named(row, name) for row in sure), len(sure))}"
    for cause in sorted({_cause(row) for row in closed}):
        sides = [_side(row, name) for row in closed if _cause(row) == cause]
        ends = f"x* below {sides.count(-1)}, above {sides.count(1)}"
        yield f"  where {cause} binds: covered {_share(sides.count(0), len(sides))}, {ends}"


def _cause(row: Row) -> str:
    """Returns the wall that binds; for errors by a time limit, `timeouts`."""
    wall = str(row["truth"]["wall"])
    return "timeouts" if wall == "errors" and row.get("kind") == "timeouts" else wall


def _close(estimate: int, true: int) -> bool:
    return abs(estimate - true) <= max(1.0, 0.05 * true)


def _unseen(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["number"] in UNSEEN]


def _is_known_best(row: Row) -> bool:
    """Whether the truth reached the standard error sought for it. Independent of any answer."""
    return bool(row["truth"]["se"] <= sought_se(row["truth"]["x"], aimed=row["truth"].get("aimed", False)))


def _sharp(row: Row, name: str) -> bool:
    """Whether the truth's error is at most TRUTH_SHARE of the interval's, or the interval is open."""
    said = row[name]
    if said["high"] is None or row["truth"]["se"] == 0.0 or said["high"] == said["low"]:
        return True
    return bool(row["truth"]["se"] <= TRUTH_SHARE * (said["high"] - said["low"]) / 2 / ONE_SIDED)


def _side(row: Row, name: str) -> int:
    """Returns 0 if the interval covers the truth, -1 if the truth lies below it, 1 if above."""
    x, said = row["truth"]["x"], row[name]
    if x < said["low"]:
        return -1
    return int(said["high"] is not None and x > said["high"])


def _named(row: Row, name: str) -> bool:
    """Whether the answer names the first wall, or one within half a user or 2 % of it."""
    x, crossings = row["truth"]["x"], row["truth"]["crossings"]
    return any(
        wall == row[name]["binding"] and at - x <= max(0.5, 0.02 * x) for wall, at in crossings.items()
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"
