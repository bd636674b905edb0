"""Compares predicted latency with published measurements: `python -m benchmarks gpu`.

The measurements are not part of the repository. SEATCOUNT_GPU names a JSON Lines file with one measured
condition per line. With `--fit` the shares of loadtest/model/step_efficiency.toml are fitted anew. NVIDIA's
aiconfigurator is compared where it is installed, and `--aiconfigurator` installs it where it is missing.
"""

import datetime
import math
import os
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.environments import UnavailableError
from benchmarks.gpu.configurator import CONFIGURATOR_PINS, ask_configurator, prepare_configurator
from benchmarks.gpu.fit import PLAIN_ROOFLINE, Fitted, computed_and_late, fit_shares, table_text
from benchmarks.gpu.published import PublishedRow, read_conditions
from loadtest.model.step_time import FITTED_FILE

PUBLISHED = "SEATCOUNT_GPU"
LATENCIES = ("ttft", "tpot", "e2e")
Errors = dict[str, list[tuple[str, float]]]
"""By figure: deployment and ln(measured / predicted) of each row."""


def main() -> None:
    """Prints errors on deployments, models and cards that were left out, and the coverage of the bands."""
    path = os.environ.get(PUBLISHED)
    if path is None:
        print(f"gpu: set {PUBLISHED} to a JSON Lines file of published measurements to compare with.")
        return
    rows, left_out = read_conditions(Path(path))
    counted = [row for row in rows if row.doubt is None]
    print(f"gpu: {len(counted)} conditions of {len({row.deployment for row in counted})} deployments")
    whole = fit_shares(counted)
    _print_rows(whole, rows)
    errors, fits = {}, {}
    for name, key in _KEYS.items():
        fits[name] = _left_out_fits(counted, key, whole)
        for habits in (True, False):
            errors[name, habits] = _errors(counted, key, fits[name], habits=habits)
            _print_errors(name, errors[name, habits], habits=habits)
    plain = Fitted(efficiency=PLAIN_ROOFLINE, habits={})
    alone = _errors(counted, _everything, {"": plain}, habits=False)
    _print_errors("nothing: the plain roofline", alone, habits=False)
    _print_beside(counted, fits)
    bands = {
        f"{figure}_{card}": _band(errors[name, False][figure])
        for card, name in (("known", "deployment"), ("unknown", "card"))
        for figure in LATENCIES
    }
    for card, name in (("known", "deployment"), ("unknown", "card")):
        calibrated = calibrated_errors(errors[name, True])
        if any(len(_by_deployment(calibrated[figure])) < 2 for figure in LATENCIES):
            continue  # no other deployment with several rows, to take the band from
        _print_errors(f"{name}, and calibrated by its own other loads", calibrated, habits=True)
        bands |= {f"{figure}_calibrated_{card}": _band(calibrated[figure]) for figure in LATENCIES}
    if "--fit" in sys.argv:
        text = table_text(
            whole,
            date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            cards=sorted({row.card for row in counted}),
            bands=bands,
        )
        FITTED_FILE.write_text(text, encoding="utf-8")
        print(f"gpu: wrote {FITTED_FILE.name}")
    for reason, count in sorted(left_out.items(), key=lambda item: -item[1]):
        print(f"  left out: {count} rows: {reason}")


Key = Callable[[PublishedRow], str]


def _deployment(row: PublishedRow) -> str:
    return row.deployment


def _model(row: PublishedRow) -> str:
    return row.model


def _card(row: PublishedRow) -> str:
    return row.card


_KEYS: Mapping[str, Key] = {"deployment": _deployment, "model": _model, "card": _card}


def _left_out_fits(rows: Sequence[PublishedRow], key: Key, whole: Fitted) -> dict[str, Fitted]:
    """Returns, for each deployment, model or card, the fit to all rows but its own."""
    names = sorted({key(row) for row in rows})
    others = [[row for row in rows if key(row) != name] for name in names]
    with ProcessPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(fit_again, others, [whole] * len(names)))
    return dict(zip(names, found, strict=True))


def fit_again(rows: Sequence[PublishedRow], whole: Fitted) -> Fitted:
    """Fits to some of the rows, starting at the fit to all."""
    return fit_shares(rows, start=whole, rounds=5)


def _errors(rows: Sequence[PublishedRow], key: Key, fits: Mapping[str, Fitted], *, habits: bool) -> Errors:
    return _errors_of(rows, [fits[key(row)].means_s(row, habits=habits) for row in rows])


def _errors_of(rows: Sequence[PublishedRow], predicted: Sequence[tuple[float, float]]) -> Errors:
    """predicted: mean TTFT and mean TPOT of each row, seconds."""
    found: Errors = defaultdict(list)
    for row, (ttft_s, tpot_s) in zip(rows, predicted, strict=True):
        e2e_s = ttft_s + (row.output - 1) * tpot_s
        for name, true, got in zip(
            LATENCIES, (row.ttft_s, row.tpot_s, row.e2e_s), (ttft_s, tpot_s, e2e_s), strict=True
        ):
            if true is not None:
                found[name].append((row.deployment, math.log(true / got)))
    return found


def calibrated_errors(errors: Errors) -> Errors:
    """Returns the errors after each time was multiplied by what the other rows of its deployment show.

    As `analysis.sizing --calibrate` does, the factor is the geometric mean of the ratios of E2E; deployments
    without E2E, or with a single row, are left out.
    """
    found: Errors = defaultdict(list)
    ends = _by_deployment(errors["e2e"])
    for figure in LATENCIES:
        place: dict[str, int] = defaultdict(int)
        for deployment, error in errors[figure]:
            here, place[deployment] = place[deployment], place[deployment] + 1
            group = ends.get(deployment, [])
            if len(group) != len(_by_deployment(errors[figure])[deployment]) or len(group) < 2:
                continue
            others = [one for at, one in enumerate(group) if at != here]
            found[figure].append((deployment, error - statistics.fmean(others)))
    return found


def _print_errors(name: str, errors: Errors, *, habits: bool) -> None:
    print(f"gpu: left out by {name}, {_said(habits=habits)}")
    for figure in LATENCIES:
        rows = errors[figure]
        by_row = statistics.median(abs(error) for _, error in rows)
        medians = [statistics.median(map(abs, group)) for group in _by_deployment(rows).values()]
        bands = {deployment: _band([row for row in rows if row[0] != deployment]) for deployment, _ in rows}
        inside = [
            bands[deployment][0] <= math.exp(error) <= bands[deployment][1] for deployment, error in rows
        ]
        print(
            f"  {figure:4s} median error {_percent(by_row)} by row, "
            f"{_percent(statistics.median(medians))} by deployment; "
            f"bias {_percent(statistics.median(-error for _, error in rows))}; "
            f"band of the others holds {100 * sum(inside) / len(inside):.0f} % of {len(inside)}"
        )


def _print_beside(rows: Sequence[PublishedRow], fits: Mapping[str, Mapping[str, Fitted]]) -> None:
    """Prints errors of aiconfigurator, of ours and of the plain roofline, on the rows that it can express.

    fits: by what is left out, the fit for each of its names. Sides are told the same habits.
    """
    if why := prepare_configurator(install="--aiconfigurator" in sys.argv):
        print(f"gpu: {why}")
        return
    for habits in (True, False):
        told = [
            computed_and_late(row, fits["deployment"][row.deployment].habits if habits else {})
            for row in rows
        ]
        try:
            answers = ask_configurator(rows, [computed for computed, _ in told])
        except UnavailableError as problem:
            print(f"gpu: {CONFIGURATOR_PINS[0]} is not compared: {problem}")
            return
        known = [
            (row, (answer[0] + late * answer[1], answer[1]))
            for row, answer, (_, late) in zip(rows, answers, told, strict=True)
            if not isinstance(answer, str)
        ]
        print(f"gpu: beside {CONFIGURATOR_PINS[0]}, {_said(habits=habits)}")
        _print_sides("rows", known, fits, habits=habits)
        _print_sides(
            "closed loops", [each for each in known if each[0].users is not None], fits, habits=habits
        )
        for reason, count in Counter(answer for answer in answers if isinstance(answer, str)).most_common():
            print(f"  not in its terms: {count} rows: {reason}")


def _print_sides(
    which: str,
    known: Sequence[tuple[PublishedRow, tuple[float, float]]],
    fits: Mapping[str, Mapping[str, Fitted]],
    *,
    habits: bool,
) -> None:
    """known: rows with aiconfigurator's mean TTFT and mean TPOT, seconds."""
    rows = [row for row, _ in known]
    plain = {
        name: Fitted(efficiency=PLAIN_ROOFLINE, habits=fit.habits) for name, fit in fits["deployment"].items()
    }
    sides = {
        f"ours, {name} left out": _errors(rows, _KEYS[name], fit, habits=habits) for name, fit in fits.items()
    }
    sides["aiconfigurator"] = _errors_of(rows, [answer for _, answer in known])
    sides["plain roofline"] = _errors(rows, _deployment, plain, habits=habits)
    print(f"  {len(rows)} {which} of {len({row.deployment for row in rows})} deployments")
    for name, errors in sides.items():
        cells = [f"{figure} {_summary(errors[figure])}" for figure in LATENCIES if errors[figure]]
        print(f"    {name:25s} {'; '.join(cells)}")


def _summary(errors: Sequence[tuple[str, float]]) -> str:
    by_row = statistics.median(abs(error) for _, error in errors)
    medians = [statistics.median(map(abs, group)) for group in _by_deployment(errors).values()]
    bias = statistics.median(-error for _, error in errors)
    return (
        f"{_percent(by_row)} by row, {_percent(statistics.median(medians))} by deployment, "
        f"bias {_percent(bias)} ({len(errors)})"
    )


def _said(*, habits: bool) -> str:
    return "prefixes as the source repeats them" if habits else "from the stated lengths alone"


def _by_deployment(rows: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for deployment, error in rows:
        groups[deployment].append(error)
    return groups


def _band(rows: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Returns the 5th and the 95th percentile of measured over predicted. Deployments weigh the same."""
    groups = _by_deployment(rows)
    values = np.array([error for group in groups.values() for error in group])
    weights = np.array([1 / len(group) for group in groups.values() for _ in group])
    low, high = np.quantile(values, (0.05, 0.95), weights=weights, method="inverted_cdf")
    return math.exp(low), math.exp(high)


def _percent(error: float) -> str:
    return f"{100 * math.expm1(error):+.0f} %" if error < 0 else f"{100 * math.expm1(error):.0f} %"


def _print_rows(whole: Fitted, rows: Sequence[PublishedRow]) -> None:
    print("gpu: predicted over measured, median of each deployment's rows, in the fit; ? shown, not counted")
    groups: dict[str, list[PublishedRow]] = defaultdict(list)
    for row in rows:
        groups[row.deployment].append(row)
    for name, group in groups.items():
        cells = [
            _ratio([error for _, error in errors[figure]])
            for habits in (True, False)
            for errors in [_errors(group, _everything, {"": whole}, habits=habits)]
            for figure in LATENCIES
        ]
        mark = "?" if group[0].doubt else " "
        told, alone = " ".join(cells[:3]), " ".join(cells[3:])
        print(f" {mark}{name[:76]:76s} {len(group):3d}  {told}  from the lengths alone {alone}")


def _everything(_: PublishedRow) -> str:
    return ""


def _ratio(errors: Sequence[float]) -> str:
    return f"{math.exp(-statistics.median(errors)):4.2f}" if errors else "   -"
