"""A wall (a limit of the server) as a number of users, with bounds at any confidence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.evidence.evidence import Evidence
from analysis.statistics.arrays import Floats
from analysis.statistics.crossings import Crossing
from analysis.walls.names import Basis, WallName

RESAMPLES, QUICK_RESAMPLES = 300, 100
WALL_DRAWS = (
    3000  # random values of each wall that tell which is the first: a share of 5 % is then known to 0.4 %
)
BEYOND = 5  # draws beyond a quantile, at least; a bound with fewer is continued as a normal tail


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlacedWall:
    """Position of one wall: x users (real-valued), with bounds."""

    name: WallName
    x: float
    bound: Callable[[float], tuple[float, float]]
    """Maps a one-sided error probability to the (lower, upper) bound on x."""
    draws: Floats
    """Draws of x, shape (WALL_DRAWS,). They tell how often each wall is the first."""
    basis: Basis
    user_class: str | None = None
    """Class of users that misses the objective; None where there are no classes, or it is of all of them."""
    rise: tuple[float, float] | None = None
    """Users at which half, and twice, the share of misses that the limit allows is reached. None for a wall
    that is not found by a share of misses."""


def placed_at_crossing(
    name: WallName, evidence: Evidence, crossing: Crossing, rng: np.random.Generator
) -> PlacedWall:
    """Returns the wall for a curve that crosses its limit between measured levels."""
    return PlacedWall(
        name=name,
        x=crossing.x,
        bound=crossing.bound,
        draws=_draws(crossing.x, crossing.bound(0.05), rng),
        basis=_basis(crossing.x, evidence.trusted),
        rise=crossing.rise,
    )


def first_of_classes(walls: Sequence[PlacedWall]) -> PlacedWall | None:
    """Returns the wall of a mix of classes of users from those of each class; None if there is none.

    It is that of the class that misses its objective with the fewest users, with what is not known of the
    others: one of them may be the first.
    """
    if len(walls) < 2:
        return walls[0] if walls else None
    nearest = min(walls, key=lambda wall: wall.x)

    def bound(error: float) -> tuple[float, float]:
        lows, highs = zip(*(wall.bound(error) for wall in walls), strict=True)
        return min(lows), min(highs)

    return replace(nearest, bound=bound, draws=np.min([wall.draws for wall in walls], axis=0))


def placed_by_draws(
    name: WallName, evidence: Evidence, x: float, draws: Floats, *, measured: bool
) -> PlacedWall:
    """Returns a wall that a model predicts. Its bounds are quantiles of `draws`, random values of the wall.

    measured: whether measured levels corrected the prediction. If not, the basis is "model", unless the wall
    is extrapolated.
    """
    basis = _basis(x, evidence.trusted)
    if basis != "extrapolated" and not measured:
        basis = "model"

    def bound(error: float) -> tuple[float, float]:
        return min(tail_quantile(draws, error), x), max(-tail_quantile(-draws, error), x)

    return PlacedWall(name=name, x=x, bound=bound, draws=np.resize(draws, WALL_DRAWS), basis=basis)


def tail_quantile(draws: Floats, error: float) -> float:
    """Returns the quantile of the draws at a small share `error`.

    Where fewer than BEYOND draws lie below it, the tail is taken as that of a normal distribution through the
    median and the quantile that has BEYOND draws below it.
    """
    known = min(BEYOND / len(draws), 0.5)
    if error >= known:
        return float(np.quantile(draws, error))
    middle, low = np.quantile(draws, [0.5, known])
    return float(middle + (low - middle) * special.ndtri(error) / special.ndtri(known))


def _draws(x: float, bounds: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Returns random values around x: log-normal on each side, with 5 % of them beyond each bound."""
    z = rng.standard_normal(WALL_DRAWS)
    below, above = math.log(x / bounds[0]) / 1.645, math.log(bounds[1] / x) / 1.645
    return x * np.exp(z * np.where(z < 0, below, above))


def placed_between(
    name: WallName, evidence: Evidence, ends: tuple[int, int], rng: np.random.Generator
) -> PlacedWall:
    """Returns a wall that is only known to lie between two numbers of users; its `x` is the lower one."""
    low, high = float(ends[0]), float(ends[1])
    return PlacedWall(
        name=name,
        x=low,
        bound=lambda _: (low, high),
        draws=rng.uniform(low, high, WALL_DRAWS),
        basis=_basis(low, evidence.trusted),
    )


def placed_exactly(name: WallName, evidence: Evidence, users: float) -> PlacedWall:
    """Returns a wall that is known without error."""
    return PlacedWall(
        name=name,
        x=users,
        bound=lambda _: (users, users),
        draws=np.full(WALL_DRAWS, users),
        basis=_basis(users, evidence.trusted),
    )


def _basis(x: float, trusted: Sequence[int]) -> Basis:
    if not trusted or x > trusted[-1] or math.ceil(x) < trusted[0]:
        return "extrapolated"
    near = max(1.0, 0.05 * x)
    return "measured" if any(abs(users - x) <= near for users in trusted) else "interpolated"
