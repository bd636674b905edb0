"""How far the twin's predictions may be off because the real server is not its model.

Refits of the twin show only how well its terms are known. The errors of the model itself are seen where a
level is predicted by a twin that was not fitted to it, and where the twin was compared with a real server
(docs/twin.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from scipy import special

from analysis.answers.twin import Interval, Prediction
from analysis.statistics.arrays import Floats
from analysis.statistics.samples import student
from analysis.twin.what_if import with_blocks
from analysis.virtual.service import Service
from loadtest.record import Slo

NORMAL_90 = 1.645
"""Standard deviations from the middle of a normal distribution to an end of its 90 % interval."""
SMALLEST_LIMIT = 0.5
"""Users that stand for a limit of less than one user, which has no logarithm."""

ErrorKind = Literal["factor", "share", "of users"]
"""How the error of a figure is counted: ln(predicted / measured), their difference, or the difference as a
share of the users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsualError:
    """How far one figure of the twin was off on a real vLLM: root mean squares over docs/twin.md's tables."""

    kind: ErrorKind
    as_measured: float
    """Loads between those that were fitted: conditions "held out", without "knee, open loop", where two runs
    of the real server differ by more than the twin is off."""
    changed: float
    """Other users, pools, lengths or replicas than measured: what was predicted before it was run."""


USUAL_ERRORS: dict[str, UsualError] = {
    "ttft_p50_s": UsualError(kind="factor", as_measured=0.20, changed=0.31),
    "ttft_p95_s": UsualError(kind="factor", as_measured=0.19, changed=0.78),
    "tpot_p50_s": UsualError(kind="factor", as_measured=0.06, changed=0.23),
    "tpot_p95_s": UsualError(kind="factor", as_measured=0.06, changed=0.23),
    "itl_p50_s": UsualError(kind="factor", as_measured=0.06, changed=0.23),
    "itl_p95_s": UsualError(kind="factor", as_measured=0.23, changed=0.23),
    "output_tok_s": UsualError(kind="factor", as_measured=0.06, changed=0.23),
    "in_flight": UsualError(kind="factor", as_measured=0.02, changed=0.06),
    "running": UsualError(kind="factor", as_measured=0.02, changed=0.06),
    "waiting": UsualError(kind="of users", as_measured=0.01, changed=0.01),
    "kv_usage": UsualError(kind="share", as_measured=0.01, changed=0.05),
    "preempted_fraction": UsualError(kind="share", as_measured=0.01, changed=0.02),
    "prefix_hit_rate": UsualError(kind="share", as_measured=0.02, changed=0.02),
}
"""For TPOT the row of ITL p50 stands for loads as measured, because the table has no TPOT there, and a p95 is
taken to be known no better than its median where the speed is not known. Throughput errs as TPOT does.
Figures that are not listed have no interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelErrors:
    """Errors of predicted figures at levels that the predicting fits did not see."""

    held_out: dict[str, list[float]]
    """Errors by figure, of the kind that USUAL_ERRORS says."""

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "ModelErrors":
        """Computes the errors of predictions that have measured figures beside them."""
        return cls(
            held_out={
                name: [error for one in predictions if (error := _error(name, one)) is not None]
                for name in USUAL_ERRORS
            }
        )

    def reach(self, name: str, *, changed: bool) -> float:
        """Returns the distance from a predicted figure to the ends of a 90 % interval, for the model alone.

        It is the larger of two: the usual error of the twin on a real server, and the errors at the levels of
        this run that were left out, by Student's t. changed: whether the load or the server is another than
        the measured one.
        """
        usual = USUAL_ERRORS[name]
        floor = NORMAL_90 * (usual.changed if changed else usual.as_measured)
        seen = self.held_out.get(name, [])
        if not seen:
            return floor
        return max(floor, student(len(seen) + 1) * math.sqrt(sum(error**2 for error in seen) / len(seen)))

    def interval(self, name: str, values: Sequence[float], *, users: float, changed: bool) -> Interval:
        """Returns the 90 % interval of a figure from its values in the simulations of the refits.

        Distances of the refits and of the model are added as squares. users: for figures whose error grows
        with the users.
        """
        kind, reach = USUAL_ERRORS[name].kind, self.reach(name, changed=changed)
        if kind == "factor":
            return factor_interval(values, reach) if min(values) > 0 else (0.0, max(values))
        low, high = _interval(values, reach * users if kind == "of users" else reach)
        return max(low, 0.0), min(high, 1.0) if name in ("kv_usage", "prefix_hit_rate") else high


NO_LEVELS_LEFT_OUT = ModelErrors(held_out={})


def _error(name: str, one: Prediction) -> float | None:
    """Returns the error of one predicted figure; None where it cannot be told."""
    predicted, measured, kind = one.values.get(name), one.measured.get(name), USUAL_ERRORS[name].kind
    if predicted is None or measured is None:
        return None
    if kind == "factor":
        return math.log(predicted / measured) if predicted > 0 and measured > 0 else None
    return (predicted - measured) / (max(one.users, 1) if kind == "of users" else 1.0)


def _interval(values: Sequence[float], reach: float) -> Interval:
    middle, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    away = math.hypot(student(len(values)) * spread, reach)
    return middle - away, middle + away


def factor_interval(values: Sequence[float], reach: float = 0.0) -> Interval:
    """Returns the 90 % interval of a positive figure from at least two values, by Student's t on logarithms.

    reach: a further error, ln of the factor at an end of its own 90 % interval.
    """
    low, high = _interval(np.log(values).tolist(), reach)
    return math.exp(low), math.exp(high)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Variant:
    """A refit of the service that errs as the twin may err. Its limit is one draw of the true limit."""

    service: Service
    slo: Slo
    """Objectives divided by the factors by which the twin's times are off."""
    users_factor: float = 1.0
    """Factor on the limit: requests in flight that are off by a factor move it by the inverse."""


def variants_of(
    draws: Sequence[Service], slo: Slo, errors: ModelErrors, *, changed: bool, seed: int = 0
) -> list[Variant]:
    """Returns each refit with random errors of the model: in TTFT, TPOT, KV usage and requests in flight.

    A time that is predicted too short by a factor misses its objective as one does whose objective is shorter
    by that factor. KV usage that is predicted too low fills the pool as a smaller pool would be filled.
    """
    rng = np.random.default_rng(seed)
    names = ("ttft_p95_s", "tpot_p95_s", "kv_usage", "running")
    reach = [errors.reach(name, changed=changed) for name in names]
    off = np.column_stack([_normal(len(draws), rng) * one / NORMAL_90 for one in reach])
    return [
        Variant(
            service=with_blocks(draw, max(round(math.exp(pool) * draw.engine.num_gpu_blocks), 2)),
            slo=with_times(slo, ttft=math.exp(ttft), tpot=math.exp(tpot)),
            users_factor=math.exp(running),
        )
        for draw, (ttft, tpot, pool, running) in zip(draws, off.tolist(), strict=True)
    ]


def _normal(count: int, rng: np.random.Generator) -> Floats:
    """Returns so many standard normal numbers in random order, with variance 1 and one in each part of the
    distribution of equal probability (a Latin hypercube)."""
    values = special.ndtri((np.arange(count) + 0.5) / count)
    return np.asarray(rng.permutation(values / max(float(np.std(values)), 1e-9)))


def with_times(slo: Slo, *, ttft: float, tpot: float) -> Slo:
    """Returns the objectives divided by factors. That of stalls goes with TPOT: both are times of steps."""
    return msgspec.structs.replace(
        slo,
        ttft_p95_s=slo.ttft_p95_s / ttft,
        tpot_p95_s=slo.tpot_p95_s / tpot,
        stall_p95_s=None if slo.stall_p95_s is None else slo.stall_p95_s / tpot,
    )


def stall_warnings(slo: Slo, *, budget_known: bool) -> list[str]:
    """Returns what the twin does not know of stalls, where they have an objective.

    budget_known: whether max_num_batched_tokens was stated. vLLM does not export it.
    """
    if slo.stall_p95_s is None:
        return []
    text = (
        "The twin's stalls were never compared with a real server: the intervals take them to err as TPOT "
        "does, but for what the network and the load generator add."
    )
    if not budget_known:
        text += (
            " They hang on max_num_batched_tokens, which is assumed: state it with "
            "--measured-max-num-batched-tokens."
        )
    return [text]


def limit_interval(point_x: float, drawn_x: Sequence[float], *, largest: float) -> Interval:
    """Returns the 90 % interval of a limit of users, from the estimate and the limits of the variants.

    A limit that was not found counts as `largest`. The lower end is 0 where it is below one user. The
    interval holds the estimate.
    """
    values = [min(max(x, SMALLEST_LIMIT), largest) for x in (point_x, *drawn_x)]
    low, high = factor_interval(values) if len(values) > 1 else (values[0], values[0])
    low, high = min(low, values[0]), max(high, values[0])
    return low if low >= 1.0 else 0.0, high if high < largest else math.inf
