"""How well the twin predicts a level that it was not fitted on, over random deployments in virtual time.

KV usage, TTFT p95 and TPOT p95 are compared with a measurement of that level. The floor is the difference
between that measurement and a second one of the same level.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.levels.level import Level
from analysis.twin.calibration import CalibrationError, ServerFlags, calibrate
from analysis.virtual.run import simulate_users
from analysis.virtual.service import users_at_half_load
from testing.truth.deployments import deployment
from testing.truth.methods import answer_duration_s
from testing.truth.virtual_load import SETTLE_S, VirtualLoad

_DEPLOYMENTS = 60
PARTS = (0.4, 0.8, 1.2, 1.6)  # levels, as multiples of the users who fill half of the pool
LEVEL_ANSWERS = 60.0  # length of a level after settling, in response times
PREDICTED_REQUESTS = 6000
FIGURES = ("KV usage", "TTFT p95", "TPOT p95")
TARGETS = (0.03, 0.2, 0.1)  # |ln(predicted / measured)| up to which a prediction is close, by figure


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionErrors:
    """Errors of one predicted level, a value for each of FIGURES (nan if the figure is missing)."""

    place: int
    """Index of the level in PARTS that was left out of the fit."""
    predicted: tuple[float, ...]
    """ln(predicted / measured)."""
    again: tuple[float, ...]
    """ln(measured again / measured)."""


def main() -> None:
    """Prints the errors for a level between the fitted ones and for a level above them."""
    errors: list[PredictionErrors] = []
    with ProcessPoolExecutor() as pool:
        for done, some in enumerate(pool.map(_errors_of, range(_DEPLOYMENTS)), start=1):
            errors += some
            print(f"\r{done} of {_DEPLOYMENTS}", end="", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    print(
        f"held_out: {_DEPLOYMENTS} random deployments; of four levels three are fitted, in runs of their own"
    )
    for place, name in ((2, "inside"), (3, "the highest")):
        some = [error for error in errors if error.place == place]
        for text in _table(some):
            print(f"  {name:<12} {text}")


def _table(errors: Sequence[PredictionErrors]) -> Iterator[str]:
    for at, (figure, target) in enumerate(zip(FIGURES, TARGETS, strict=True)):
        off = np.array([error.predicted[at] for error in errors])
        floor = np.array([error.again[at] for error in errors])
        known = ~np.isnan(off)
        floor = floor[~np.isnan(floor)]
        close = np.sum(np.abs(floor) <= target)
        yield (
            f"{figure}: median {100 * np.median(off[known]):+.1f} %, median size "
            f"{100 * np.median(np.abs(off[known])):.1f} %, within {100 * target:.0f} % in "
            f"{np.sum(np.abs(off[known]) <= target)} of {known.sum()}; measured again: median size "
            f"{100 * np.median(np.abs(floor)):.1f} %, within {close} of {len(floor)}"
        )


def _errors_of(number: int) -> list[PredictionErrors]:
    one = deployment(number)
    users = sorted({max(round(part * users_at_half_load(one.service)), 1) for part in PARTS})
    if len(users) < len(PARTS):
        return []
    first, second = (_measured(number, users, seed) for seed in (1, 2))
    found = []
    for place in (2, 3):
        level, other = (_of(evidence.levels, users[place]) for evidence in (first, second))
        if level is None or other is None or not level.trusted:
            continue
        rest = _measured(number, [count for count in users if count != users[place]], 3 + place)
        flags = ServerFlags(max_num_seqs=one.service.engine.max_num_seqs)
        try:
            fitted = calibrate(rest, rest.levels, flags).service
        except CalibrationError:
            continue
        said = simulate_users(fitted, users[place], requests=PREDICTED_REQUESTS, seed=3).figures(one.slo)
        predicted = (said.kv_usage, said.ttft_p95_s, said.tpot_p95_s)
        found.append(
            PredictionErrors(
                place=place,
                predicted=_logs(predicted, _figures(level)),
                again=_logs(_figures(other), _figures(level)),
            )
        )
    return found


def _measured(number: int, users: Sequence[int], seed: int) -> Evidence:
    one = deployment(number)
    load = VirtualLoad(one.service, one.slo, seed=40_000_000 + 10 * number + seed, with_gaps=True)
    for count in users:
        load.hold(count, SETTLE_S + max(LEVEL_ANSWERS * answer_duration_s(one), 10.0))
    return gather_evidence([load.run()], slo=one.slo)


def _of(levels: Sequence[Level], users: int) -> Level | None:
    return next((level for level in levels if level.users == users), None)


def _figures(level: Level) -> tuple[float, ...]:
    return (
        level.server.kv_cache_usage,
        level.requests.ttft_s.p95 or math.nan,
        level.requests.tpot_s.p95 or math.nan,
    )


def _logs(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    return tuple(math.log(a / b) if a > 0 and b > 0 else math.nan for a, b in zip(ours, theirs, strict=True))
