"""The throughput wall (a limit in users): the server's total tokens per second fall with more users."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level
from analysis.statistics.samples import student
from analysis.walls.errors import served_all
from analysis.walls.placed import PlacedWall, placed_between

MIN_FALL = 0.02  # share by which output throughput must fall, however significant


def place_throughput(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Returns the wall between the two levels where throughput falls; None where it does not fall."""
    fall = throughput_fall(evidence.levels)
    return placed_between("throughput", evidence, fall, rng) if fall is not None else None


def throughput_fall(levels: Sequence[Level]) -> tuple[int, int] | None:
    """Returns the numbers of users before and after a fall of output throughput; None without a fall.

    Trusted levels with equal users are pooled. Levels in which load makes more than OVERLOAD_LIMIT of the
    requests fail are left out: their throughput is what the refusals leave. A fall between two neighbouring
    levels meets three conditions:

    - It is larger than 2 %.
    - A one-sided t test finds it significant, at 1 % divided by the number of pairs of neighbours.
    - No higher level comes back to within 2 % of the level before the fall.
    """
    served = [level for level in levels if level.trusted and served_all(level)]
    trusted = sorted(served, key=lambda level: level.users)
    known = [_Rate.of(list(same)) for _, same in groupby(trusted, key=lambda level: level.users)]
    for position, (here, after) in enumerate(pairwise(known)):
        drop = here.tok_s - after.tok_s
        error = math.hypot(here.se, after.se)
        sure = student(min(here.batches, after.batches), one_sided=1.0 - 0.01 / (len(known) - 1))
        falls = drop > MIN_FALL * here.tok_s and drop > sure * error
        if falls and max(one.tok_s for one in known[position + 1 :]) < (1.0 - MIN_FALL) * here.tok_s:
            return here.users, after.users
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rate:
    """Output throughput at one number of users."""

    users: int
    tok_s: float
    se: float
    batches: int

    @classmethod
    def of(cls, levels: Sequence[Level]) -> "_Rate":
        window = np.array([level.window.length_s for level in levels])
        share = window / window.sum()
        return cls(
            users=levels[0].users,
            tok_s=float(share @ [level.requests.output_tok_s for level in levels]),
            se=math.sqrt(float(share**2 @ [level.requests.output_tok_se**2 for level in levels])),
            batches=min(level.window.batches for level in levels),
        )
