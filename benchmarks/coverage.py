"""How often the interval covers the true maximum, over random deployments in virtual time: on sweeps, and on
the outputs of the search. What was measured is kept in benchmarks/data/coverage.jsonl, and what is missing
there is measured: about an hour and a half of one core for all of it."""

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from analysis.answer import ModelAnswer
from analysis.capacity import recommend
from benchmarks.deployments import deployment, truth_of
from benchmarks.kept import DATA, Row, completed
from benchmarks.methods import estimate, life_s, search, sweep

KEPT = DATA / "coverage.jsonl"
DEPLOYMENTS = 387
SEARCHED = 240  # of them, the first
BUDGET_S, BUDGET_LIVES = 900.0, 150.0  # of a search: the default, more where answers take long
TRUTH_SHARE = 0.2  # the truth's own error is at most this share of the interval's
ONE_SIDED = 1.645  # standard errors to the end of a 90 % interval
OVER = 1.05


def run() -> None:
    """Measures what is missing and prints the table."""
    report(list(completed(KEPT, range(DEPLOYMENTS), measured).values()))


def measured(number: int) -> Row:
    """One deployment: where its maximum truly lies, and what is said of it. Deterministic by number."""
    one = deployment(number)
    truth = truth_of(one)
    row: Row = {
        "number": number,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "life_s": round(life_s(one), 3),
        "traits": {name: round(value, 4) for name, value in one.traits.items()},
        "truth": asdict(truth) if truth is not None else None,
    }
    if truth is None or not truth.resolved:
        return row
    load, answer = sweep(one)
    row["sweep"] = _said(answer, gpu_s=load.now_s, requests=load.ended)
    if number < SEARCHED:
        curve = []
        for load, seen in search(one, budget_s=max(BUDGET_S, BUDGET_LIVES * life_s(one))):
            x = estimate(seen)
            curve.append((round(load.now_s, 1), None if math.isnan(x) else round(x, 3)))
        load.finish()
        final = recommend([load.run()], slo=one.slo)
        row["search"] = _said(final, gpu_s=load.now_s, requests=load.ended) | {"curve": curve}
    return row


def _said(answer: ModelAnswer, *, gpu_s: float, requests: int) -> Row:
    low, high = answer.interval_x or (None, None)
    return {
        "refused": answer.reasons,
        "at_least": answer.at_least,
        "x": answer.estimate_x,
        "low": low,
        "high": high,
        "max_users": answer.max_users,
        "binding": answer.binding,
        "bounds": {one.name: [one.users_x, *one.interval_x] for one in answer.bounds},
        "gpu_s": round(gpu_s, 1),
        "requests": requests,
    }


def report(rows: Sequence[Row]) -> None:
    """Prints the table."""
    known = [row for row in rows if row.get("sweep")]
    unknown = Counter(
        "no truth" if row["truth"] is None else "truth not resolved" for row in rows if row not in known
    )
    print(f"coverage: {len(rows)} random deployments, {len(known)} with a known maximum; {dict(unknown)}")
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
    sharp = [row for row in closed if _sharp(row, name)]
    yield f"refused {_share(len(refused), len(rows))}"
    yield f"no wall met, at least N: {_share(len(judged) - len(closed), len(rows))}"
    for what, some in (
        ("of all, the truth's own error included", closed),
        ("where that error is below a fifth of the interval's", sharp),
    ):
        sides = [_side(row, name) for row in some]
        yield f"the 90 % interval covers x*, {what}: {_share(sides.count(0), len(sides))}"
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
    for wall in ("kv_cache", "ttft", "tpot", "max_num_seqs"):
        some = [row for row in closed if row["truth"]["wall"] == wall]
        if some:
            covered = sum(_side(row, name) == 0 for row in some)
            yield f"  where {wall} binds: covered {_share(covered, len(some))}"


def _close(estimate: int, true: int) -> bool:
    return abs(estimate - true) <= max(1.0, 0.05 * true)


def _sharp(row: Row, name: str) -> bool:
    """Whether the truth is known well enough for this interval."""
    said = row[name]
    if said["high"] is None or row["truth"]["se"] == 0.0 or said["high"] == said["low"]:
        return True
    return bool(row["truth"]["se"] <= TRUTH_SHARE * (said["high"] - said["low"]) / 2 / ONE_SIDED)


def _side(row: Row, name: str) -> int:
    """0: the interval holds the truth; -1: the truth is below it; 1: above."""
    x, said = row["truth"]["x"], row[name]
    if x < said["low"]:
        return -1
    return int(said["high"] is not None and x > said["high"])


def _named(row: Row, name: str) -> bool:
    """Also right where two walls lie within half a user or 2 %."""
    x, crossings = row["truth"]["x"], row["truth"]["crossings"]
    return any(
        wall == row[name]["binding"] and at - x <= max(0.5, 0.02 * x) for wall, at in crossings.items()
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"
