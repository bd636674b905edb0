"""Finds how many replicas a number of users needs. Prices are added elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.twin.maximum import (
    MAX_VIRTUAL_USERS,
    MIN_REQUESTS_PER_USER,
    PROBE_REQUESTS,
    VirtualMaximum,
    find_maximum,
)
from analysis.twin.model_error import Variant, limit_interval
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
    """Sized at the lower end of `per_replica_interval`."""
    spare: int
    per_replica_x: float
    """Users of one replica, as estimated."""
    per_replica_interval: tuple[float, float]
    """Its 90 % interval; the upper end is infinite where no limit was found."""
    binding: WallName
    usual: VirtualFigures
    """Figures with all replicas; their `users` are those of the simulated replicas."""
    after_loss: VirtualFigures
    """Figures after the loss of the spare replicas; their `users` are those of the simulated replicas."""


def size_fleet(
    service: Service,
    variants: Sequence[Variant],
    users: int,
    slo: Slo,
    *,
    router: str,
    spare: int = 0,
    on_probe: Callable[[int], None] = lambda _: None,
) -> Fleet | None:
    """Finds how many replicas hold `users` even when `spare` of the replicas are lost.

    The fleet is sized for the least users that a replica may hold: the lower end of the 90 % interval from
    the limits of the variants. None if that is not even one user.
    """
    point = _simulated_maximum(service, slo, router, on_probe, start=None)
    if point is None:
        return None
    start = max(point.users, 1) if math.isfinite(point.x) else None
    drawn = [
        variant.users_factor * found.x if found is not None else 0.0
        for variant in variants
        for found in [_simulated_maximum(variant.service, variant.slo, router, on_probe, start=start)]
    ]
    low, high = limit_interval(point.x, drawn, largest=MAX_VIRTUAL_USERS)
    if low < SIMULATED_REPLICAS:
        return None
    replicas = replicas_for(users, low / SIMULATED_REPLICAS) + spare
    return Fleet(
        users=users,
        replicas=replicas,
        spare=spare,
        per_replica_x=point.x / SIMULATED_REPLICAS,
        per_replica_interval=(low / SIMULATED_REPLICAS, high / SIMULATED_REPLICAS),
        binding=point.wall,
        usual=_figures_with(service, users, replicas, slo, router),
        after_loss=_figures_with(service, users, replicas - spare, slo, router),
    )


def replicas_for(users: int, per_replica: float) -> int:
    """Returns how many replicas hold `users`, if each holds `per_replica`; at least 1."""
    return max(math.ceil(users / per_replica), 1)


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
