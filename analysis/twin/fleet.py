"""Finds how many replicas a number of users needs. Prices are added elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.twin.maximum import MIN_REQUESTS_PER_USER, PROBE_REQUESTS, VirtualMaximum, find_maximum
from analysis.virtual.run import VirtualFigures, simulate_users
from analysis.virtual.service import Service
from analysis.walls.names import WallName
from loadtest.record import Slo
from loadtest.simulator.routers import ROUTERS

SIMULATED_REPLICAS = 4
"""Number of replicas that are simulated and stand for the whole fleet. More would change the answer little: a
router spreads load over four nearly as evenly as over a thousand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """A fleet whose replicas still hold `users` when `spare` of them are lost."""

    users: int
    replicas: int
    interval: tuple[int, int]
    spare: int
    per_replica_x: float
    binding: WallName
    usual: VirtualFigures
    """Figures with all replicas; their `users` are those of the simulated replicas."""
    after_loss: VirtualFigures
    """Figures after the loss of the spare replicas; their `users` are those of the simulated replicas."""


def size_fleet(
    service: Service,
    draws: Sequence[Service],
    users: int,
    slo: Slo,
    *,
    router: str,
    spare: int = 0,
    on_probe: Callable[[int], None] = lambda _: None,
) -> Fleet | None:
    """Finds how many replicas hold `users` even when `spare` of the replicas are lost.

    None if the simulated replicas do not even hold one user.
    """
    point = _simulated_maximum(service, slo, router, on_probe, start=None)
    if point is None:
        return None
    drawn = [_simulated_maximum(draw, slo, router, on_probe, start=point.users) for draw in draws]
    wanted = [
        _needed(users, maximum.x / SIMULATED_REPLICAS) + spare for maximum in drawn if maximum is not None
    ]
    replicas = _needed(users, point.x / SIMULATED_REPLICAS) + spare
    return Fleet(
        users=users,
        replicas=replicas,
        interval=(min([*wanted, replicas]), max([*wanted, replicas])),
        spare=spare,
        per_replica_x=point.x / SIMULATED_REPLICAS,
        binding=point.wall,
        usual=_figures_with(service, users, replicas, slo, router),
        after_loss=_figures_with(service, users, replicas - spare, slo, router),
    )


def _needed(users: int, per_replica_x: float) -> int:
    return max(math.ceil(users / per_replica_x), 1) if per_replica_x > 0 else users


def _simulated_maximum(
    service: Service,
    slo: Slo,
    router: str,
    on_probe: Callable[[int], None],
    *,
    start: int | None,
) -> VirtualMaximum | None:
    """Finds how many users SIMULATED_REPLICAS replicas behind one router hold together."""
    return find_maximum(
        service, slo, start=start, replicas=SIMULATED_REPLICAS, route=ROUTERS[router], on_probe=on_probe
    )


def _figures_with(service: Service, users: int, replicas: int, slo: Slo, router: str) -> VirtualFigures:
    simulated = min(replicas, SIMULATED_REPLICAS)
    share = max(round(users * simulated / replicas), 1)
    requests = max(PROBE_REQUESTS, MIN_REQUESTS_PER_USER * share)
    return simulate_users(
        service, share, requests=requests, replicas=simulated, route=ROUTERS[router]()
    ).figures(slo)
