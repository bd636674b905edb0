"""Predicts levels or an open loop, with intervals.

Also checks the twin: fits that did not see a measured level predict it.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec
import numpy as np

from analysis.answers.twin import Prediction
from analysis.levels.level import Level
from analysis.twin.model_error import USUAL_ERRORS, ModelErrors
from analysis.twin.source import FittedTwin
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import (
    VirtualClassFigures,
    VirtualFigures,
    VirtualRun,
    simulate_arrivals,
    simulate_users,
)
from analysis.virtual.service import Service
from loadtest.errors import InputError
from loadtest.record import Slo
from loadtest.simulator.routers import ROUTERS
from loadtest.workload.arrivals import ArrivalProcess
from loadtest.workload.traces import read_trace

PREDICTED_FIGURES = tuple(
    field.name for field in fields(VirtualFigures) if field.name not in ("users", "requests", "classes")
)
CLASS_FIGURES = tuple(
    field.name for field in fields(VirtualClassFigures) if field.name not in ("name", "requests")
)
LEVEL_REQUESTS, LEVEL_REQUESTS_PER_USER = 1000, 30  # least requests of a predicted level: a stable p95
CHECK_REQUESTS, CHECK_REQUESTS_PER_USER = 1500, 40
Advance = Callable[[int], None]
"""Moves a progress bar by a number of simulations."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scenario:
    """The service to predict, with all changes applied, and how its users are spread over replicas."""

    service: Service
    draws: Sequence[Service]
    replicas: int
    router: str
    errors: ModelErrors
    most_users: float = 0.0
    """The largest number of users up to which the service is as measured; 0 if it is another one."""

    def changed(self, users: float) -> bool:
        """Whether this load on the service is another than those that were measured."""
        return users > self.most_users


def predict_levels(
    scenario: Scenario, users: Sequence[int], slo: Slo, *, advance: Advance
) -> list[Prediction]:
    """Predicts one level for each number of users. Simulates enough requests for a stable p95."""
    found = []
    for count in users:

        def level(service: Service, count: int = count) -> VirtualRun:
            advance(1)
            return _simulated(
                scenario, service, count, requests=max(LEVEL_REQUESTS, LEVEL_REQUESTS_PER_USER * count)
            )

        found.append(_prediction(count, level, scenario, slo))
    return found


def predict_open_loop(
    scenario: Scenario, due: Sequence[DueRequest], slo: Slo, *, advance: Advance
) -> Prediction:
    """Predicts an open loop, whose requests have known times and lengths.

    The prediction has `users` 0, because an open loop has no number of users.
    """

    def open_loop(service: Service) -> VirtualRun:
        advance(1)
        route = ROUTERS[scenario.router]()
        return simulate_arrivals(service, due, replicas=scenario.replicas, route=route)

    return _prediction(0, open_loop, scenario, slo)


def check_left_out(twin: FittedTwin, router: str, *, advance: Advance) -> list[Prediction]:
    """Predicts each level by the fit that did not see it, and adds its measured figures for comparison.

    The requested changes are not applied. The intervals hold the errors at the other levels, not the spread
    of refits.
    """
    found = []
    for one in twin.left_out:
        advance(1)
        users = one.level.users
        run = simulate_users(
            one.fit.service,
            users,
            requests=max(CHECK_REQUESTS, CHECK_REQUESTS_PER_USER * users),
            replicas=one.fit.replicas,
            route=ROUTERS[router](),
        )
        values = _known_figures(run.figures(twin.slo))
        found.append(
            Prediction(
                users=users,
                values=values,
                intervals={},
                measured=measured_figures(one.level),
                held_out=True,
            )
        )
    return [
        _with_model_intervals(one, ModelErrors.of([other for other in found if other is not one]))
        for one in found
    ]


def _with_model_intervals(one: Prediction, errors: ModelErrors) -> Prediction:
    intervals = {
        name: errors.interval(name, [value, value], users=one.users, changed=False)
        for name, value in one.values.items()
        if name in USUAL_ERRORS
    }
    return msgspec.structs.replace(one, intervals=intervals)


def beside_measured(prediction: Prediction, twin: FittedTwin) -> Prediction:
    """Returns the prediction with the measured figures of a trusted level with the same number of users.

    Without such a level, the prediction is returned unchanged.
    """
    level = next((one for one in twin.levels if one.users == prediction.users and one.trusted), None)
    if level is None:
        return prediction
    held_out = level.users not in twin.fit.fitted_users
    return msgspec.structs.replace(prediction, measured=measured_figures(level), held_out=held_out)


def measured_figures(level: Level) -> dict[str, float]:
    """Returns the known measured figures of a level, by their names in `VirtualFigures`."""
    values = {
        "in_flight": level.in_flight,
        "ttft_p50_s": level.requests.ttft_s.p50,
        "ttft_p95_s": level.requests.ttft_s.p95,
        "tpot_p50_s": level.requests.tpot_s.p50,
        "tpot_p95_s": level.requests.tpot_s.p95,
        "stall_p95_s": level.requests.stall_s.p95,
        "itl_p50_s": level.requests.chunk_gap_s.p50 if level.requests.gap_is_itl else None,
        "itl_p95_s": level.requests.chunk_gap_s.p95 if level.requests.gap_is_itl else None,
        "output_tok_s": level.requests.output_tok_s,
        "kv_usage": level.server.kv_cache_usage,
        "running": level.server.running,
        "prefix_hit_rate": level.server.prefix_hit_rate,
        "preempted_fraction": level.server.preemptions / level.requests.finished
        if level.requests.finished
        else None,
    }
    return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def due_requests(
    service: Service, *, arrivals: str | None, duration_s: float, trace: Path | None, speed: float, seed: int
) -> list[DueRequest]:
    """Makes the requests of an open loop, from a trace or from an arrival process such as `poisson:4`.

    Lengths that the trace lacks are drawn from the first turns of the service's conversations. speed: factor
    by which the trace runs faster. Raises InputError, ValueError.
    """
    rng = random.Random(seed)
    if trace:
        timed = list(read_trace(trace, speed=speed))
    else:
        timed = list(ArrivalProcess.parse(arrivals or "").arrivals(seed=seed, duration_s=duration_s))
    if not timed:
        raise InputError("No request is due in that time: raise the rate or --duration-s.")
    found = []
    for arrival in timed:
        drawn = DueRequest.drawn(service, arrival.due_s, rng)
        found.append(
            replace(
                drawn,
                prompt_tokens=arrival.prompt_tokens or drawn.prompt_tokens,
                output_tokens=arrival.output_tokens or drawn.output_tokens,
                prefix_blocks=arrival.prefix_blocks,
            )
        )
    return found


def _simulated(scenario: Scenario, service: Service, users: int, *, requests: int) -> VirtualRun:
    route = ROUTERS[scenario.router]()
    return simulate_users(service, users, requests=requests, replicas=scenario.replicas, route=route)


def _prediction(
    users: int, simulated: Callable[[Service], VirtualRun], scenario: Scenario, slo: Slo
) -> Prediction:
    figures = [simulated(service).figures(slo) for service in (scenario.service, *scenario.draws)]
    runs = [_known_figures(each) for each in figures]
    columns = {name: [run[name] for run in runs] for name in runs[0] if all(name in run for run in runs)}
    load = users or float(np.mean(columns["in_flight"]))
    return Prediction(
        users=users,
        values={name: float(np.mean(column)) for name, column in columns.items()},
        intervals={
            name: scenario.errors.interval(
                name, column, users=load, changed=not users or scenario.changed(users)
            )
            for name, column in columns.items()
            if name in USUAL_ERRORS
        },
        classes=_class_figures(figures),
    )


def _class_figures(figures: Sequence[VirtualFigures]) -> dict[str, dict[str, float]]:
    """Returns the figures of each class, by its name: means over the simulations."""
    found: dict[str, dict[str, float]] = {}
    for position, one in enumerate(figures[0].classes):
        columns = {
            name: [float(getattr(each.classes[position], name)) for each in figures] for name in CLASS_FIGURES
        }
        means = {name: float(np.mean(column)) for name, column in columns.items()}
        found[one.name] = {name: value for name, value in means.items() if not math.isnan(value)}
    return found


def _known_figures(figures: VirtualFigures) -> dict[str, float]:
    found = {name: float(getattr(figures, name)) for name in PREDICTED_FIGURES}
    return {name: value for name, value in found.items() if not math.isnan(value)}
