"""Users who think: their pause between requests, and the share of the time in which they are in flight."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import optimize

from analysis.evidence.step_time import is_free
from analysis.levels.level import Level
from loadtest.record import UserClass
from loadtest.workload.classes import users_by_weight

PAUSE_CV = 1.0  # coefficient of variation of think times, taken as exponential


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """Users who think for Z seconds between requests.

    With n requests in flight, a request takes R(n) = idle + slope * n seconds.
    """

    think_s: float
    idle_s: float
    slope_s: float
    think_error: float = 0.0
    """Standard error of ln think_s."""
    classes: "tuple[ClassPace, ...]" = ()
    """What differs between the classes of users, in the order of the workload file; empty without classes."""

    def per_engine(self, engines: int) -> "Thinking":
        """Returns the same users as one of `engines` equal engines sees them.

        A request is slowed down only by the requests of its own engine, so slopes are `engines` times as
        large.
        """
        return replace(
            self,
            slope_s=self.slope_s * engines,
            classes=tuple(replace(one, slope_s=one.slope_s * engines) for one in self.classes),
        )

    def drawn(self, rng: np.random.Generator) -> "Thinking":
        """Returns the same users with a random think time, drawn according to its standard error."""
        return replace(
            self,
            think_s=self.think_s * math.exp(self.think_error * rng.standard_normal()),
            classes=tuple(one.drawn(rng) for one in self.classes),
        )

    def active_of_class(self, position: int) -> "ActiveShare":
        """Returns `active` for the users of one class alone, as a function of the users of all classes."""
        return lambda users: _shares_of_classes(self, users)[position]

    def active(self, users: int) -> float:
        """Returns p, the share of the time in which a user has a request in flight, at N = `users`.

        It solves p = R(n) / (R(n) + Z). Here n = p N is the number of requests in flight, R(n) the duration
        of a request, and Z the think time.
        """
        # n = N R/(R + Z), R = idle + slope n  ->  slope n^2 + (idle + Z - N slope) n - N idle = 0
        linear = self.idle_s + self.think_s - users * self.slope_s
        if self.slope_s <= 0:
            return self.idle_s / (self.idle_s + self.think_s)
        root = math.hypot(linear, 2.0 * math.sqrt(self.slope_s * users * self.idle_s))
        return (root - linear) / (2.0 * self.slope_s) / users


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPace:
    """Users of one class, as `Thinking` describes all: n is the number of requests in flight of all
    classes."""

    weight: float
    think_s: float
    idle_s: float
    slope_s: float
    think_error: float = 0.0
    """Standard error of ln think_s."""

    def duration_s(self, in_flight: float) -> float:
        """Returns how long a request takes, seconds, with so many in flight."""
        return self.idle_s + self.slope_s * in_flight

    def active(self, in_flight: float) -> float:
        """Returns the share of the time in which a user has a request in flight, with so many in flight."""
        duration_s = self.duration_s(in_flight)
        return duration_s / (duration_s + self.think_s) if duration_s + self.think_s > 0 else 1.0

    def drawn(self, rng: np.random.Generator) -> "ClassPace":
        """Returns the same class with a random think time, drawn according to its standard error."""
        return replace(self, think_s=self.think_s * math.exp(self.think_error * rng.standard_normal()))


@lru_cache(maxsize=256)  # each class asks for its own share at the same number of users
def _shares_of_classes(thinking: Thinking, users: int) -> list[float]:
    """Returns p_c of each class, where n = sum over the classes of N_c p_c(n) requests are in flight."""
    counts = users_by_weight([one.weight for one in thinking.classes], users)

    def shares(in_flight: float) -> list[float]:
        return [one.active(in_flight) for one in thinking.classes]

    def beyond(in_flight: float) -> float:
        return sum(n * p for n, p in zip(counts, shares(in_flight), strict=True)) - in_flight

    # Nobody in flight is a solution too where requests take no time then: the other one is looked for.
    few = 1e-6 * users
    return shares(optimize.brentq(beyond, few, users + 1.0, xtol=1e-9) if beyond(few) > 0.0 else few)


def thinking_of(levels: Sequence[Level], classes: Sequence[UserClass] = ()) -> Thinking | None:
    """Fits the think time Z and the request duration R(n) to the trusted levels.

    n is the number of requests in flight. Z follows from Little's law in all trusted levels. R(n) is fitted
    to the trusted levels without a queue; if every level had a queue, it is fitted to all of them.
    None without a trusted level in which requests succeeded.
    """
    known = [
        level
        for level in levels
        if level.trusted and level.in_flight > 0 and level.requests.n > level.requests.errors
    ]
    if not known:
        return None
    free = [level for level in known if is_free(level)] or known
    n = np.array([level.in_flight for level in free], dtype=np.float64)
    duration_s = np.array([level.requests.e2e_mean_s for level in free], dtype=np.float64)
    weight = np.array([level.requests.n for level in free], dtype=np.float64)
    root = np.sqrt(weight)
    (idle, slope), _ = optimize.nnls(np.column_stack([root, root * n]), root * duration_s)
    requests = np.array([level.requests.n for level in known], dtype=np.float64)
    think = [_think_s(level) for level in known]
    return Thinking(
        think_s=max(float(np.average(think, weights=requests)), 0.0),
        idle_s=float(idle),
        slope_s=float(slope),
        think_error=PAUSE_CV / math.sqrt(float(requests.sum())),
        classes=tuple(
            _pace(known, position, one.weight, idle_s=float(idle), slope_s=float(slope))
            for position, one in enumerate(classes)
        ),
    )


def _pace(
    levels: Sequence[Level], position: int, weight: float, *, idle_s: float, slope_s: float
) -> ClassPace:
    """Returns the pace of a class by Little's law, over all levels.

    idle_s, slope_s: those of all requests. The requests of the class take the same multiple of their duration
    at every load.
    """
    seen = [(level, level.classes[position]) for level in levels]
    requests = sum(one.n for _, one in seen)
    if not requests:
        return ClassPace(weight=weight, think_s=0.0, idle_s=idle_s, slope_s=slope_s)
    present_s = sum(one.users * level.window.length_s for level, one in seen)
    in_flight_s = sum(one.in_flight * level.window.length_s for level, one in seen)
    longer_x = in_flight_s / sum(one.n * level.requests.e2e_mean_s for level, one in seen)
    return ClassPace(
        weight=weight,
        think_s=max(present_s - in_flight_s, 0.0) / requests,
        idle_s=longer_x * idle_s,
        slope_s=longer_x * slope_s,
        think_error=PAUSE_CV / math.sqrt(requests),
    )


def _think_s(level: Level) -> float:
    """Returns the mean think time of a level by Little's law, pauses after failed requests left out."""
    requests, duration_s = level.requests, level.requests.e2e_mean_s
    if requests.errors:  # failed requests are mostly shorter, or longer, and users think after them too
        duration_s = level.in_flight * level.window.length_s / requests.ended
    return duration_s * ((level.users - level.paused) / level.in_flight - 1.0)


ActiveShare = Callable[[int], float]
"""A user's share of the time in flight, from 0 to 1, as a function of the number of users."""


def always_active(_: int) -> float:
    """Returns 1: users who never think are always in flight."""
    return 1.0


def active_of(thinking: Thinking | None, position: int | None = None) -> ActiveShare:
    """Returns a function from the number of users to a user's share of the time in flight.

    Without think time, this share is always 1. position: that of a class of users; None: of all users.
    """
    if thinking is None:
        return always_active
    return thinking.active if position is None else thinking.active_of_class(position)
