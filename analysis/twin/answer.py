"""Builds the answer of a twin for twin.json: fitted terms, predictions, limit, fleets."""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import msgspec
import numpy as np

from analysis.answers.twin import FleetAnswer, Interval, LimitAnswer, Prediction, Term, TwinAnswer
from analysis.cli import RefusedError
from analysis.reporting.console import ProgressBar
from analysis.statistics.samples import finite_or_none, student
from analysis.twin.fleet import Fleet, replicas_for, size_fleet
from analysis.twin.maximum import MAX_VIRTUAL_USERS, VirtualMaximum, find_maximum
from analysis.twin.model_error import ModelErrors, Variant, limit_interval, stall_warnings, variants_of
from analysis.twin.predictions import (
    Advance,
    Scenario,
    beside_measured,
    check_left_out,
    due_requests,
    predict_levels,
    predict_open_loop,
)
from analysis.twin.source import FittedTwin, twin_of_preset, twin_of_run
from analysis.twin.step_fit import STEP_TERMS
from analysis.twin.what_if import changes_of
from analysis.virtual.service import Service
from loadtest.errors import InputError
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.routers import ROUTERS

PRESET_USERS = (1, 2, 4, 8, 16)  # users that are predicted for a preset unless --users says others
FLEET_PROBES = 8  # about how many simulations a fleet search takes, for the progress bar
FLEET_SIZES = (1_000, 10_000, 100_000, 1_000_000)  # users of the further fleets


def twin_answer(options: argparse.Namespace, bar: ProgressBar) -> TwinAnswer:
    """Fits the twin, checks it on the held-out level, applies the requested changes, and predicts.

    Raises InputError, RefusedError, CalibrationError.
    """
    if options.preset:
        with _stated_values():
            twin = twin_of_preset(options)
    else:
        twin = twin_of_run(options, bar)
    simulations = len(twin.draws) + 1
    left_out = check_left_out(
        twin, options.router, advance=bar.task("checking", total=len(twin.left_out) or 1)
    )
    with _stated_values():
        changes, change = changes_of(options, twin.fit.service, twin.memory)
        replicas = options.replicas or twin.fit.replicas
        as_measured = not changes and replicas == twin.fit.replicas
        scenario = Scenario(
            service=change(twin.fit.service),
            draws=[change(draw) for draw in twin.draws],
            replicas=replicas,
            router=options.router,
            errors=ModelErrors.of(left_out),
            most_users=max(twin.fit.fitted_users, default=0) if as_measured else 0,
        )
    return TwinAnswer(
        source=twin.source,
        changes=changes,
        slo=twin.slo,
        engine=_engine_facts(scenario.service.engine),
        terms=_terms(twin),
        fitted_users=list(twin.fit.fitted_users),
        check=_check(left_out, options.hold_out),
        left_out=left_out,
        predictions=_predictions(options, twin, scenario, as_measured=as_measured, bar=bar),
        limit=_limit(options, twin, scenario, advance=bar.task("limit", total=simulations)),
        fleet=_fleets(options, twin, scenario, bar),
        warnings=[
            *_warnings(twin, scenario.service),
            *stall_warnings(
                twin.slo,
                budget_known=not twin.levels or options.measured_max_num_batched_tokens is not None,
            ),
        ],
    )


def _check(left_out: Sequence[Prediction], wanted: int | None) -> Prediction | None:
    asked = [one for one in left_out if wanted is None or one.users == wanted]
    return asked[-1] if asked else None


@contextmanager
def _stated_values() -> Iterator[None]:
    """Turns a ValueError, by which a stated value is refused, into an InputError."""
    try:
        yield
    except ValueError as problem:
        raise InputError(str(problem)) from None


def _predictions(
    options: argparse.Namespace, twin: FittedTwin, scenario: Scenario, *, as_measured: bool, bar: ProgressBar
) -> list[Prediction]:
    """Predicts the requested numbers of users, or an open loop.

    as_measured: True if no changes are requested. Each prediction then also gets the measured figures of the
    level with the same number of users, if there is one.
    """
    simulations = len(scenario.draws) + 1
    if options.arrivals or options.trace:
        with _stated_values():
            due = due_requests(
                scenario.service,
                arrivals=options.arrivals,
                duration_s=options.duration_s,
                trace=options.trace,
                speed=options.trace_speed,
                seed=options.seed,
            )
        return [predict_open_loop(scenario, due, twin.slo, advance=bar.task("predicting", total=simulations))]
    trusted = sorted({level.users for level in twin.levels if level.trusted})
    users = options.users or trusted or PRESET_USERS
    advance = bar.task("predicting", total=len(users) * simulations)
    found = predict_levels(scenario, users, twin.slo, advance=advance)
    return [beside_measured(prediction, twin) for prediction in found] if as_measured else found


# The limit.


def _limit(
    options: argparse.Namespace, twin: FittedTwin, scenario: Scenario, *, advance: Advance
) -> LimitAnswer | None:
    """Finds how many users fit within the objectives; None in an open loop."""
    if options.arrivals or options.trace:
        return None
    route = ROUTERS[scenario.router]

    def search(service: Service, slo: Slo, start: int | None) -> VirtualMaximum | None:
        advance(1)
        return find_maximum(service, slo, start=start, replicas=scenario.replicas, route=route)

    point = search(scenario.service, twin.slo, None)
    if point is None:
        return LimitAnswer(x=0.0, interval=(0.0, 0.0), wall="not even one user")
    start = max(point.users, 1) if math.isfinite(point.x) else None
    drawn = []
    for variant in _variants(twin, scenario, point.x):
        found = search(variant.service, variant.slo, start)
        drawn.append(variant.users_factor * found.x if found is not None else 0.0)
    low, high = limit_interval(point.x, drawn, largest=MAX_VIRTUAL_USERS)
    return LimitAnswer(
        x=finite_or_none(point.x),
        interval=(low, finite_or_none(high)),
        wall=point.wall,
        user_class=point.user_class,
    )


def _variants(twin: FittedTwin, scenario: Scenario, users: float) -> list[Variant]:
    return variants_of(scenario.draws, twin.slo, scenario.errors, changed=scenario.changed(users))


# Fleets.


def _fleets(
    options: argparse.Namespace, twin: FittedTwin, scenario: Scenario, bar: ProgressBar
) -> list[FleetAnswer]:
    """Sizes the requested fleet, and scales it to larger numbers of users. Empty if no fleet was requested.

    Raises RefusedError if one replica does not even hold one user.
    """
    if options.fleet_users is None:
        return []
    advance: Callable[[int], None] = bar.task("fleet", total=FLEET_PROBES * (len(scenario.draws) + 1))
    found = size_fleet(
        scenario.service,
        variants_of(scenario.draws, twin.slo, scenario.errors, changed=True),
        options.fleet_users,
        twin.slo,
        router=scenario.router,
        spare=options.spare_replicas,
        on_probe=advance,
    )
    if found is None:
        raise RefusedError("One replica does not surely hold one user within the objectives: no fleet does.")
    price = options.price_per_gpu_hour
    first = _fleet_answer(found, scenario.router, price and price * twin.gpus)
    return [first, *(_scaled(first, users) for users in FLEET_SIZES if users > options.fleet_users)]


def _fleet_answer(fleet: Fleet, router: str, price_per_replica: float | None) -> FleetAnswer:
    low, high = fleet.per_replica_interval
    return FleetAnswer(
        users=fleet.users,
        replicas=fleet.replicas,
        replicas_by_estimate=replicas_for(fleet.users, fleet.per_replica_x) + fleet.spare,
        spare=fleet.spare,
        per_replica=low,
        per_replica_estimate=finite_or_none(fleet.per_replica_x),
        per_replica_interval=(low, finite_or_none(high)),
        binding=fleet.binding,
        router=router,
        price_per_hour=price_per_replica and price_per_replica * fleet.replicas,
        usual_ttft_p95_s=fleet.usual.ttft_p95_s,
        after_loss_ttft_p95_s=fleet.after_loss.ttft_p95_s,
    )


def _scaled(fleet: FleetAnswer, users: int) -> FleetAnswer:
    """Returns the fleet scaled to another number of users.

    The number of users per replica and the number of spare replicas stay the same.
    """
    replicas = replicas_for(users, fleet.per_replica) + fleet.spare
    return msgspec.structs.replace(
        fleet,
        users=users,
        replicas=replicas,
        replicas_by_estimate=replicas_for(users, fleet.per_replica_estimate or math.inf) + fleet.spare,
        price_per_hour=fleet.price_per_hour and fleet.price_per_hour / fleet.replicas * replicas,
    )


# The fitted terms, and warnings.


def _engine_facts(engine: EngineConfig) -> dict[str, float | int | bool | None]:
    return {field.name: getattr(engine, field.name) for field in fields(engine) if field.name != "seed"}


def _terms(twin: FittedTwin) -> list[Term]:
    service = twin.fit.service
    steps = [
        Term(
            name=name,
            value=getattr(service.engine, name),
            interval=_refit_interval([getattr(draw.engine, name) for draw in twin.fit.draws]),
        )
        for name in STEP_TERMS
    ]
    overhead = {"overhead_s": service.overhead_s, "overhead_per_user_s": service.overhead_per_user_s}
    return steps + [
        Term(name=name, value=value, interval=(value, value)) for name, value in overhead.items() if value
    ]


def _refit_interval(values: Sequence[float]) -> Interval:
    """Returns the 90 % interval of a term from its refits, by Student's t; the lower end is at least 0."""
    middle, reach = float(np.mean(values)), student(len(values)) * float(np.std(values, ddof=1))
    return max(middle - reach, 0.0), middle + reach


def _warnings(twin: FittedTwin, asked: Service) -> list[str]:
    found = []
    if twin.levels and not twin.left_out:
        found.append(
            "No level could be predicted by a fit to the others: the intervals hold only the errors that the "
            "twin had on another server (docs/twin.md)."
        )
    measured = twin.fit.service.chatting.conversations
    other_lengths = asked.chatting.conversations is not measured
    if twin.levels and other_lengths and not asked.engine.step_per_kv_token_s:
        found.append(
            "The run could not tell what a KV token costs a step apart from a sequence: with other lengths "
            "the decode times are less certain than the intervals say."
        )
    return found
