"""The true maxima of deployments in virtual time, with which answers are compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.levels.queues import QUEUE_LIMIT
from analysis.statistics.crossings import MISS_LIMIT
from analysis.twin.maximum import find_maximum
from analysis.virtual.run import VirtualFigures, simulate_users
from analysis.walls.errors import OVERLOAD_LIMIT
from analysis.walls.throughput import MIN_FALL
from testing.truth.deployments import VirtualDeployment

PLAY_REQUESTS = 3000  # requests of a play, or 40 a user if that is more
PLAYS = (
    6,
    40,
    100,
)  # plays of each of the two levels: fewest; most to reach SE_ROOT; most of all, which only
# deployments get at whose wall nobody aimed
SE_USERS, SE_SHARE = 0.1, 0.005  # limit of a resolved truth's standard error, the larger: users; share of x
SE_ROOT = 0.018  # standard error to reach, times the root of x: a fifth of most intervals'
AIMED_SE_ROOT, AIMED_SE_SHARE = (
    0.03,
    0.01,
)  # the same where a wall was aimed at: more of these curves are flat
WIDE = 0.01  # distance of the two levels as a share of the lower one, but at least one user
FLAT_WIDE = 0.06  # the same where the curve may be flat, so that its slope is known
SHIFTS = 12  # how often the two levels may move to bracket the wall
AIMED_SHIFTS = 24  # the same where a wall was aimed at; they move by steps that double
PLAY_S = 120.0  # shortest play where requests are refused, in seconds: four times the longest pause after it
PEAK_LEVELS = 40  # levels among which the largest throughput is looked for

Crossings = dict[str, float]
"""Users at which walls are crossed, by the name of the wall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The true maximum of a deployment: `x` (real-valued users), its standard error and its wall.

    `requests`: requests in the windows of the simulations.
    """

    x: float
    se: float
    wall: str
    crossings: Crossings
    """Users at which the walls are crossed that the upper of the two levels is past. The smallest is `x`."""
    requests: int
    until: float | None = None
    """End of the users that are as true as `x`, where one user more turns no error into many; else None."""

    aimed: bool = False
    """Whether the wall was aimed at, so that a larger error is allowed."""

    @property
    def resolved(self) -> bool:
        """Whether the standard error is small enough to judge answers."""
        return self.se <= _allowed_se(self.x, self.aimed)


def sought_se(x: float, *, aimed: bool) -> float:
    """Returns the standard error that a truth at x users should reach within PLAYS[1] plays."""
    return (AIMED_SE_ROOT if aimed else SE_ROOT) * math.sqrt(x)


def _allowed_se(x: float, aimed: bool) -> float:
    return max(SE_USERS, (AIMED_SE_SHARE if aimed else SE_SHARE) * x)


def truth_of(one: VirtualDeployment) -> Truth | None:
    """Measures the maximum as docs/method.md defines it, by long simulations of two levels.

    Returns None if one user breaks an objective, if no wall is met, or if no two levels bracket the wall.
    """
    rough = find_maximum(one.service, one.slo, requests=2000, seed=one.number)
    if rough is None or not math.isfinite(rough.x):
        return None
    plays = _Plays(one)
    fall = plays.look_for_peak(math.ceil(1.2 * rough.users))
    low, count = rough.users if fall is None else min(fall, rough.users), PLAYS[0]
    most = PLAYS[1] if plays.aimed else PLAYS[2]
    while True:
        bracket = _bracket(plays, low, count)
        if bracket is None:
            return None
        low, found = bracket
        sought = (
            sought_se(found.x, aimed=found.aimed) if count < PLAYS[1] else _allowed_se(found.x, found.aimed)
        )
        if found.se <= sought or count >= most:
            return found
        more = math.ceil(count * min(1.1 * (found.se / sought) ** 2, 2.0))
        count = min(more, PLAYS[1] if count < PLAYS[1] else PLAYS[2])


def _bracket(plays: "_Plays", low: int, count: int) -> tuple[int, Truth] | None:
    """Finds two levels with the wall between them. Returns the lower one and the truth, else None."""
    step, came_from = 1, 0
    for _ in range(AIMED_SHIFTS if plays.aimed else SHIFTS):
        high = low + plays.width(low)
        found = plays.first_wall(low, high, count)
        if found is not None and not math.isinf(found.x):
            return low, found
        way = -1 if found is None else 1
        step = 2 * step if plays.aimed and way == came_from else 1
        low, came_from = low + way * (step if plays.aimed or way < 0 else high - low), way
        if low < 1:
            return None
    return None


class _Plays:
    """Simulates levels several times (plays). Play number i has the same people at every level."""

    def __init__(self, one: VirtualDeployment) -> None:
        self._one = one
        self._seen: dict[int, list[VirtualFigures]] = {}
        self._peak: int | None = None

    @property
    def aimed(self) -> bool:
        """Whether the deployment was drawn for one wall."""
        return self._one.kind != "any"

    def width(self, low: int) -> int:
        """Returns the distance of the two levels, the lower of which has `low` users."""
        kind, thinks = self._one.kind, self._one.traits["think_s"] > 0
        flat = kind in ("ttft", "timeouts") or (kind == "errors" and thinks)
        return max(1, int((FLAT_WIDE if flat else WIDE) * low))

    def look_for_peak(self, up_to: int) -> int | None:
        """Finds the users with the largest output throughput, beside which a fall is judged from then on.

        Only for deployments that were drawn for it: elsewhere throughput flattens, but never falls. Returns
        the last of about PEAK_LEVELS levels before the fall, or None without a fall up to `up_to` users.
        """
        if self._one.kind != "throughput":
            return None
        first = max(self._one.traits["aim"] / 2, 1.0)
        levels = sorted({round(users) for users in np.geomspace(first, max(up_to, first), PEAK_LEVELS)})
        made = [self._of(users, 1)[0].output_tok_s for users in levels]
        top = int(np.argmax(made))
        fallen = [place for place in range(top, len(made)) if made[place] < (1.0 - MIN_FALL) * made[top]]
        if not fallen:
            return None
        self._peak = levels[top]
        return int(levels[fallen[0] - 1])

    def first_wall(self, low: int, high: int, count: int) -> Truth | None:
        """Returns the first wall from `count` plays of each level, with a jackknife error over the plays.

        Returns None if the lower level is past a wall, and an infinite `x` if the upper level is past none.
        """
        whole = self._crossings(low, high, range(count))
        if whole is None:
            return None
        if not whole:
            return Truth(x=math.inf, se=0.0, wall="not_reached", crossings={}, requests=0, aimed=self.aimed)
        wall = min(whole, key=lambda name: whole[name])
        left_out = []
        for place in range(count):
            rest = self._crossings(low, high, [other for other in range(count) if other != place])
            left_out.append(min(rest.values(), default=float(high)) if rest is not None else float(low))
        spread = np.array(left_out) - np.mean(left_out)
        return Truth(
            x=whole[wall],
            se=math.sqrt(float(np.sum(spread**2)) * (count - 1) / count),
            wall=wall,
            crossings=whole,
            requests=sum(seen.requests for users in (low, high) for seen in self._of(users, count)),
            until=float(high) if self._is_step(wall, low, high, range(count)) else None,
            aimed=self.aimed,
        )

    def _of(self, users: int, count: int) -> list[VirtualFigures]:
        plays = self._seen.setdefault(users, [])
        while len(plays) < count:
            seed = 1000 * self._one.number + len(plays)
            plays.append(
                simulate_users(self._one.service, users, requests=self._requests(users), seed=seed).figures(
                    self._one.slo
                )
            )
        return plays[:count]

    def _requests(self, users: int) -> int:
        """Returns the number of requests of a play."""
        wanted, traits = max(PLAY_REQUESTS, 40 * users), self._one.traits
        if self._one.kind != "errors":
            return wanted
        cycle_s = traits["output"] * traits["step_s"] + traits["think_s"]
        return max(wanted, math.ceil(PLAY_S * users / cycle_s))

    def _is_step(self, wall: str, low: int, high: int, chosen: Sequence[int]) -> bool:
        """Whether one user more takes the deployment from sound to broken: from no error at all to many, or
        to a throughput that has fallen at once."""
        if high != low + 1:
            return False
        if wall == "errors":
            return self._means(low, chosen)["error_share"] == 0.0
        return wall == "throughput" and low == self._peak

    def _crossings(self, low: int, high: int, chosen: Sequence[int]) -> Crossings | None:
        """Returns the users at which walls are crossed, by the chosen plays; None if `low` is past one."""
        here, there = (self._margins(users, chosen) for users in (low, high))
        if max(here.values()) > 0.0:
            return None
        found: Crossings = {}
        for name in here:
            if there[name] > 0.0:
                x = low + (high - low) * here[name] / (here[name] - there[name])
                wall = name.partition(" ")[0]
                found[wall] = min(found.get(wall, math.inf), x)
        slots = self._one.service.engine.max_num_seqs
        if "max_num_seqs" in found and not self._one.traits["think_s"]:
            found["max_num_seqs"] = float(slots)  # by definition: without think time all users need a slot
        for wall in ("errors", "throughput"):
            if wall in found and self._is_step(wall, low, high, chosen):
                found[wall] = float(low)
        return found

    def _margins(self, users: int, chosen: Sequence[int]) -> dict[str, float]:
        """Returns ln(rate / limit) or logit(share) - logit(limit) for each limit: positive if it is
        broken."""
        slo = self._one.slo
        found = self._means(users, chosen)
        margins = {
            "kv_cache preempted": math.log(max(found["preempted_fraction"], 1e-6) / slo.preempted_fraction),
            "kv_cache blocked": _over(found["blocked_fraction"], slo.kv_blocked_fraction),
            "max_num_seqs": _over(found["queue_fraction"], QUEUE_LIMIT),
            "ttft": _over(found["ttft_miss"], MISS_LIMIT),
            "tpot": _over(found["tpot_miss"], MISS_LIMIT),
            "errors": _over(found["error_share"], OVERLOAD_LIMIT),
        }
        if self._peak is not None:
            best = self._means(min(self._peak, users), chosen)
            margins["throughput"] = math.log((1.0 - MIN_FALL) * best["output_tok_s"] / found["output_tok_s"])
        return margins

    def _means(self, users: int, chosen: Sequence[int]) -> dict[str, float]:
        plays = self._of(users, max(chosen) + 1)
        return {
            name: float(np.mean([getattr(plays[place], name) for place in chosen]))
            for name in (
                "preempted_fraction", "blocked_fraction", "queue_fraction", "ttft_miss", "tpot_miss",
                "error_share", "output_tok_s",
            )
        }  # fmt: skip


def _over(share: float, limit: float) -> float:
    return _logit(share) - _logit(limit)


def _logit(share: float) -> float:
    kept = min(max(share, 1e-6), 1.0 - 1e-6)
    return math.log(kept / (1.0 - kept))
