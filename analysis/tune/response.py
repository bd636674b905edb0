"""How the limit of a setting moves when the fit or the model errs, from a few simulations around the limit.

Simulating each refit with its errors would take minutes. A pool that is larger by a factor moves the wall of
memory by that factor. Times that are longer by a factor miss an objective as they would miss one that is
shorter by that factor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.twin.maximum import wall_margins
from analysis.twin.model_error import Variant, with_times
from analysis.virtual.run import VirtualFigures, VirtualRun
from analysis.virtual.service import Service, typical_duration_s, worst_p95_s
from analysis.walls.names import WallName
from loadtest.record import Slo

AROUND_LIMIT = (0.4, 0.65, 0.85, 1.0, 1.25, 1.6)
"""Loads that are simulated, as multiples of the limit: errors of TTFT move its wall far."""
FARTHEST_FACTOR = 2.0
"""A wall farther than this from the limit, as a factor, counts as this far: nothing is simulated there."""
IN_FLIGHT_WALLS: tuple[WallName, ...] = ("kv_cache", "prefix_cache", "max_num_seqs", "errors")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SimulatedLoad:
    """A number of users, and what the simulation shows."""

    users: int
    figures: VirtualFigures
    ttft_p95_s: float
    """95th percentile of TTFT by `worst_p95_s`; nan without times."""
    tpot_p95_s: float
    stall_p95_s: float
    """The same for the longest gap between two tokens; nan where stalls have no objective."""

    @classmethod
    def of(cls, run: VirtualRun, slo: Slo) -> "SimulatedLoad":
        """Takes from a simulation what `Response` needs. slo: the objectives of the run."""
        times, own = run.times(*run.window), run.service.chatting.objectives(slo)
        several = ~np.isnan(times.tpot_s)
        stall_p95_s = math.nan
        if slo.stall_p95_s is not None:
            stalls_s, kind = run.stalls_s(*run.window)
            limits_s = [each.stall_p95_s or math.inf for each in own]
            stall_p95_s = worst_p95_s(stalls_s, kind, own_s=limits_s, run_s=slo.stall_p95_s)
        return cls(
            users=run.users,
            figures=run.figures(slo),
            ttft_p95_s=worst_p95_s(
                times.ttft_s, times.kind, own_s=[each.ttft_p95_s for each in own], run_s=slo.ttft_p95_s
            ),
            tpot_p95_s=worst_p95_s(
                times.tpot_s[several],
                times.kind[several],
                own_s=[each.tpot_p95_s for each in own],
                run_s=slo.tpot_p95_s,
            ),
            stall_p95_s=stall_p95_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Response:
    """The walls of a setting near its limit, as functions of the errors."""

    service: Service
    slo: Slo
    x: float
    """The limit by the estimate, to which the walls are scaled."""
    loads: Sequence[SimulatedLoad]
    """By rising users."""
    alone: VirtualFigures | None = None
    """Figures of one user, where the prefix cache has an objective."""

    def users_with(self, draw: Service, variant: Variant) -> float:
        """Returns the users that one refit with its errors holds.

        draw: the refit without errors.
        """
        pool = variant.service.engine.num_gpu_blocks / draw.engine.num_gpu_blocks
        pool *= _held_tokens(self.service) / _held_tokens(draw)
        slower = typical_duration_s(draw, self.x) / typical_duration_s(self.service, self.x)
        moved = self._first(
            pool=pool,
            slo=with_times(variant.slo, ttft=slower, tpot=slower),
            paused=_paused_factor(self.service, self.x, slower),
        )
        at_no_error = self._first(pool=1.0, slo=self.slo, paused=1.0)
        return variant.users_factor * self.x * moved / at_no_error

    def _first(self, *, pool: float, slo: Slo, paused: float) -> float:
        """Returns the users at the first wall.

        slo: the objectives of latency. paused: factor on users at equal requests in flight.
        """
        margins = [wall_margins(one.figures, self.slo, alone=self.alone) for one in self.loads]
        found = [
            self._crossing([one[wall] for one in margins])
            * paused
            * (pool if wall in ("kv_cache", "prefix_cache") else 1.0)
            for wall in IN_FLIGHT_WALLS
            if wall in margins[0]
        ]
        late = [
            ([one.ttft_p95_s for one in self.loads], slo.ttft_p95_s),
            ([one.tpot_p95_s for one in self.loads], slo.tpot_p95_s),
        ]
        if slo.stall_p95_s is not None:
            late.append(([one.stall_p95_s for one in self.loads], slo.stall_p95_s))
        for p95s_s, limit_s in late:
            found.append(self._crossing([_late_margin(p95_s, limit_s) for p95_s in p95s_s]))
        return min(max(min(found), self.x / FARTHEST_FACTOR), self.x * FARTHEST_FACTOR)

    def _crossing(self, margins: Sequence[float]) -> float:
        """Returns the users at which margins rise above 0, between simulated loads; linear beyond them."""
        users = [math.log(one.users) for one in self.loads]
        above = next((place for place, margin in enumerate(margins) if margin > 0), None)
        if above is None:
            above = len(users) - 1
        right = max(above, 1)
        if right >= len(users):
            return self.x
        rise = margins[right] - margins[right - 1]
        if not rise > 0:
            return math.inf if margins[-1] <= 0 else math.exp(users[0])
        found = users[right] - margins[right] * (users[right] - users[right - 1]) / rise
        farthest = math.log(FARTHEST_FACTOR)
        return math.exp(min(max(found, users[0] - farthest), users[-1] + farthest))


def loads_around(x: float) -> list[int]:
    """Returns the numbers of users to simulate around a limit."""
    return sorted({max(round(x * factor), 1) for factor in AROUND_LIMIT})


def _late_margin(p95_s: float, limit_s: float) -> float:
    """Returns ln(p95 / limit): above 0, more requests are late than may be; minus infinity without times."""
    return -math.inf if math.isnan(p95_s) else math.log(max(p95_s, 1e-9) / limit_s)


def _held_tokens(service: Service) -> float:
    """Returns the mean tokens that a request holds over its steps, without the shared prefix and rounding."""
    turns = np.array([turn for turns in service.chatting.conversations for turn in turns], dtype=np.float64)
    prompt, output = turns[:, 0], turns[:, 1]
    own = prompt - service.chatting.shared_prefix_tokens + output / 2
    return float(output @ own / output.sum())


def _paused_factor(service: Service, users: float, slower: float) -> float:
    """Returns the factor on the users at equal requests in flight when requests take `slower` times as long:
    users who think are in flight for a larger share of their time then."""
    duration_s, pause_s = typical_duration_s(service, users), float(np.mean(service.chatting.pauses_s))
    return (slower * duration_s + pause_s) / (slower * (duration_s + pause_s))
