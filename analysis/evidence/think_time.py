"""Users who think: the pause between requests, and the share of the time in which a user is in flight."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from analysis.evidence.step_time import is_free
from analysis.levels.level import Level

PAUSE_CV = 1.0  # of think times, taken as exponential: gives the standard error of their mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """Users who think Z between requests that take R(n) = idle + slope * n with n in flight."""

    think_s: float
    idle_s: float
    slope_s: float
    think_error: float = 0.0
    """Standard error of ln think_s."""

    def per_engine(self, engines: int) -> "Thinking":
        """Users of one of so many equal engines: its request durations grow with its own users only."""
        return replace(self, slope_s=self.slope_s * engines)

    def drawn(self, rng: np.random.Generator) -> "Thinking":
        """These users with a think time drawn from its error."""
        return replace(self, think_s=self.think_s * math.exp(self.think_error * rng.standard_normal()))

    def active(self, users: int) -> float:
        """Share of the time in flight, p = R/(R + Z), with R at p N in flight: the root of a quadratic. 0 to
        1."""
        # n = N R/(R + Z), R = idle + slope n  ->  slope n^2 + (idle + Z - N slope) n - N idle = 0
        linear = self.idle_s + self.think_s - users * self.slope_s
        if self.slope_s <= 0:
            return self.idle_s / (self.idle_s + self.think_s)
        root = math.sqrt(linear**2 + 4.0 * self.slope_s * users * self.idle_s)
        return (root - linear) / (2.0 * self.slope_s) / users


def thinking_of(levels: Sequence[Level]) -> Thinking | None:
    """Z by Little's law from all trusted levels, and R against requests in flight from those in which nobody
    waited, where there are any."""
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
    think = [level.requests.e2e_mean_s * (level.users / level.in_flight - 1.0) for level in known]
    return Thinking(
        think_s=max(float(np.average(think, weights=requests)), 0.0),
        idle_s=float(idle),
        slope_s=float(slope),
        think_error=PAUSE_CV / math.sqrt(float(requests.sum())),
    )


ActiveShare = Callable[[int], float]
"""Share of the time in which a user is in flight, by the number of users."""


def always_active(_: int) -> float:
    """Share in flight of users who never think."""
    return 1.0


def active_of(thinking: Thinking | None) -> ActiveShare:
    """Share in flight of these users; of users who never think where there is no think time."""
    return thinking.active if thinking else always_active
