"""Finds by simulation how many users a service holds: the number at which it crosses its first limit (wall).

The limits are defined as for measured levels (docs/method.md). Here the levels are simulated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.levels.queues import QUEUE_LIMIT
from analysis.statistics.crossings import MISS_LIMIT
from analysis.virtual.crowd import WARM_UP_SHARE
from analysis.virtual.run import VirtualFigures, simulate_users
from analysis.virtual.service import Service, users_at_half_load
from analysis.walls.errors import OVERLOAD_LIMIT
from analysis.walls.names import WallName
from loadtest.record import Slo
from loadtest.simulator.routers import Route

PROBE_REQUESTS = 3000  # requests of a probe: thirty are preempted at the limit of one in a hundred
MIN_REQUESTS_PER_USER = 12  # least number of requests of each user in a probe
QUICK_PROBE = 6  # a probe first simulates 1 / QUICK_PROBE of its requests, and stops if the result is clear
CLEAR_MARGIN = 1.2  # distance from the limit, in ln or logit, at which a quick probe is clear
BRACKET = 0.01  # largest distance of the two last probes, share of the users; at least one user
MAX_VIRTUAL_USERS = 100_000  # largest number of users that is searched

WallMargins = dict[WallName, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualMaximum:
    """The number of users that fit, and the limit (wall) that stops more."""

    x: float
    """Number of users, with decimals; infinite when no wall is crossed up to MAX_VIRTUAL_USERS."""
    wall: WallName
    below: VirtualFigures
    """Figures at the highest simulated number of users at which no wall is crossed."""
    user_class: str | None = None
    """Name of the class of users whose objective of latency is the wall; None if it is not one of a class."""

    @property
    def users(self) -> int:
        """Number of whole users that fit."""
        return math.floor(self.x)


def wall_margins(figures: VirtualFigures, slo: Slo, *, alone: VirtualFigures | None = None) -> WallMargins:
    """Returns for each limit (wall) how far the figures are beyond it. Above 0, the limit is crossed.

    The margin is ln(value / limit) for preemptions per request, and logit(value) - logit(limit) for shares.
    alone: figures of a single user, for the prefix cache. A single user's conversations all stay in this
    cache, so the hit rate of `figures` is divided by that of `alone`. The prefix cache is no limit where this
    is None or `slo` has no objective for its hits.
    """
    n = max(figures.requests, 1)
    preempted = math.log(max(figures.preempted_fraction, 0.3 / n) / slo.preempted_fraction)
    margins: WallMargins = {
        "kv_cache": max(preempted, _over(figures.blocked_fraction, slo.kv_blocked_fraction)),
        "max_num_seqs": _over(figures.queue_fraction, QUEUE_LIMIT),
        "ttft": _over(figures.ttft_miss, MISS_LIMIT),
        "tpot": _over(figures.tpot_miss, MISS_LIMIT),
        "errors": _over(figures.error_share, OVERLOAD_LIMIT),
    }
    if slo.stall_p95_s is not None:
        margins["stall"] = _over(figures.stall_miss, MISS_LIMIT)
    if slo.prefix_hit_fraction is not None and alone is not None and alone.prefix_hit_rate > 0:
        found = figures.prefix_hit_rate / alone.prefix_hit_rate
        margins["prefix_cache"] = _over(1.0 - found, 1.0 - slo.prefix_hit_fraction)
    return margins


def _over(share: float, limit: float) -> float:
    kept = min(max(share, 1e-4), 1.0 - 1e-4) if not math.isnan(share) else 1e-4
    return math.log(kept / (1.0 - kept)) - math.log(limit / (1.0 - limit))


def find_maximum(
    service: Service,
    slo: Slo,
    *,
    seed: int = 0,
    start: int | None = None,
    replicas: int = 1,
    route: Callable[[], Route] | None = None,
    requests: int = PROBE_REQUESTS,
    on_probe: Callable[[int], None] = lambda _: None,
) -> VirtualMaximum | None:
    """Finds the number of users at which the first limit (wall) is crossed; None if one user is too many.

    It is interpolated between two neighbouring probes, where a probe is a simulation at one number of users.
    start: users at which the search begins; a good start saves time. on_probe: called with 1 for each probe.
    All probes use the same random numbers (common random numbers).
    """
    known: dict[int, VirtualFigures] = {}
    turns = max(float(np.mean([len(chat) for chat in one.conversations])) for one in service.chatting.kinds)
    chats = turns > 1 and service.engine.enable_prefix_caching
    # The cache must fill and conversations must end before the window begins: a quick probe is too short.
    each = math.ceil(MIN_REQUESTS_PER_USER + turns / WARM_UP_SHARE) if chats else MIN_REQUESTS_PER_USER

    def figures(users: int) -> VirtualFigures:
        if users not in known:
            on_probe(1)
            wanted = max(requests, each * users)
            quick = probe(users, wanted if chats else max(wanted // QUICK_PROBE, each * users // 3))
            clear = chats or abs(max(wall_margins(quick, slo).values())) > CLEAR_MARGIN
            known[users] = quick if clear else probe(users, wanted)
        return known[users]

    def probe(users: int, wanted: int) -> VirtualFigures:
        routed = route() if route else None
        return simulate_users(
            service, users, requests=wanted, seed=seed, replicas=replicas, route=routed
        ).figures(slo)

    def worst(users: int) -> float:
        return max(wall_margins(figures(users), slo, alone=alone).values())

    hits_bind = chats and slo.prefix_hit_fraction is not None
    alone = probe(1, max(requests, each)) if hits_bind else None
    low, high = _bracket(worst, max(start or replicas * users_at_half_load(service), 1))
    if low == 0:
        return None
    if high > MAX_VIRTUAL_USERS:
        return VirtualMaximum(x=math.inf, wall="not_reached", below=figures(low))
    here, above = (wall_margins(figures(users), slo, alone=alone) for users in (low, high))
    crossed = {
        wall: low + (high - low) * here[wall] / (here[wall] - above[wall])
        for wall in here
        if above[wall] > 0.0
    }
    first = min(crossed, key=lambda wall: crossed[wall])
    missing = _class_that_misses(figures(high), first)
    return VirtualMaximum(x=crossed[first], wall=first, below=figures(low), user_class=missing)


def _class_that_misses(figures: VirtualFigures, wall: WallName) -> str | None:
    """Returns the name of the class whose objective is missed most, where the wall is such an objective."""
    misses = {one.name: getattr(one, f"{wall}_miss", math.nan) for one in figures.classes}
    known = {name: miss for name, miss in misses.items() if not math.isnan(miss)}
    return max(known, key=lambda name: known[name]) if known else None


def _bracket(worst: Callable[[int], float], start: int) -> tuple[int, int]:
    """Returns two numbers of users, just below and just above the first limit, at most BRACKET apart.

    The lower number is 0 if one user is too many. The upper number is above MAX_VIRTUAL_USERS if no limit is
    crossed.
    """
    low, high, step = 0, start, max(start // 8, 1)
    while high <= MAX_VIRTUAL_USERS and worst(high) <= 0.0:
        low, high, step = high, high + step, 2 * step
    if high > MAX_VIRTUAL_USERS:
        return low, high
    step = max(high // 8, 1)
    while low == 0 and high > 1:
        probe = max(high - step, 1)
        if worst(probe) > 0.0:
            high, step = probe, 2 * step
        else:
            low = probe
    while low and high - low > max(1, BRACKET * low):
        probe = (low + high) // 2
        low, high = (low, probe) if worst(probe) > 0.0 else (probe, high)
    return low, high
