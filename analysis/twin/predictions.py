"""Predicts levels or an open loop, with intervals.

Also checks the twin: it predicts a measured level that was left out of the fit.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np

from analysis.answers.twin import Interval, Prediction
from analysis.levels.level import Level
from analysis.statistics.samples import student
from analysis.twin.source import FittedTwin
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import VirtualFigures, VirtualRun, simulate_arrivals, simulate_users
from analysis.virtual.service import Service
from loadtest.errors import InputError
from loadtest.record import Slo
from loadtest.simulator.routers import ROUTERS
from loadtest.workload.arrivals import ArrivalProcess
from loadtest.workload.traces import read_trace

PREDICTED_FIGURES = tuple(
    field.name for field in fields(VirtualFigures) if field.name not in ("users", "requests")
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


def check_held_out(twin: FittedTwin, router: str, *, advance: Advance) -> Prediction | None:
    """Predicts the level that was left out of the fit, and adds its measured figures for comparison.

    The requested changes are not applied. None if no level was left out.
    """
    level = twin.held_out
    if level is None:
        return None
    scenario = Scenario(service=twin.fit.service, draws=twin.draws, replicas=twin.fit.replicas, router=router)

    def held_out(service: Service) -> VirtualRun:
        advance(1)
        requests = max(CHECK_REQUESTS, CHECK_REQUESTS_PER_USER * level.users)
        return _simulated(scenario, service, level.users, requests=requests)

    prediction = _prediction(level.users, held_out, scenario, twin.slo)
    return msgspec.structs.replace(prediction, measured=measured_figures(level), held_out=True)


def beside_measured(prediction: Prediction, twin: FittedTwin) -> Prediction:
    """Returns the prediction with the measured figures of a trusted level with the same number of users.

    Without such a level, the prediction is returned unchanged.
    """
    level = next((one for one in twin.levels if one.users == prediction.users and one.trusted), None)
    if level is None:
        return prediction
    held_out = level is twin.held_out
    return msgspec.structs.replace(prediction, measured=measured_figures(level), held_out=held_out)


def measured_figures(level: Level) -> dict[str, float]:
    """Returns the known measured figures of a level, by their names in `VirtualFigures`."""
    values = {
        "in_flight": level.in_flight,
        "ttft_p50_s": level.requests.ttft_s.p50,
        "ttft_p95_s": level.requests.ttft_s.p95,
        "tpot_p50_s": level.requests.tpot_s.p50,
        "tpot_p95_s": level.requests.tpot_s.p95,
        "itl_p50_s": level.requests.chunk_gap_s.p50 if level.requests.gap_is_itl else None,
        "itl_p95_s": level.requests.chunk_gap_s.p95 if level.requests.gap_is_itl else None,
        "output_tok_s": level.requests.output_tok_s,
        "kv_usage": level.server.kv_cache_usage,
        "running": level.server.running,
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
        prompt, output = rng.choice(service.chatting.conversations)[0]
        found.append(
            DueRequest(
                at_s=arrival.due_s,
                prompt_tokens=arrival.prompt_tokens or prompt,
                output_tokens=arrival.output_tokens or output,
                prefix_blocks=arrival.prefix_blocks,
            )
        )
    return found


def interval_of(values: Sequence[float]) -> Interval:
    """Returns the 90 % interval of a figure from its values in the simulations; the lower end is at least 0.

    The interval is computed by Student's t.
    """
    middle, reach = float(np.mean(values)), student(len(values)) * float(np.std(values, ddof=1))
    return max(middle - reach, 0.0), middle + reach


def _simulated(scenario: Scenario, service: Service, users: int, *, requests: int) -> VirtualRun:
    route = ROUTERS[scenario.router]()
    return simulate_users(service, users, requests=requests, replicas=scenario.replicas, route=route)


def _prediction(
    users: int, simulated: Callable[[Service], VirtualRun], scenario: Scenario, slo: Slo
) -> Prediction:
    runs = [simulated(service).figures(slo) for service in (scenario.service, *scenario.draws)]
    columns = {name: [float(getattr(run, name)) for run in runs] for name in PREDICTED_FIGURES}
    known = {name: column for name, column in columns.items() if not any(map(math.isnan, column))}
    return Prediction(
        users=users,
        values={name: float(np.mean(column)) for name, column in known.items()},
        intervals={name: interval_of(column) for name, column in known.items()},
    )
