"""Finds by simulation how many users a setting holds, and how sure a difference between two settings is.

Two settings are simulated by the same refits with the same errors of the model, because it is the same model.
What a changed setting errs beside that is drawn apart, of the size that the twin had on loads like the
measured ones (docs/tune.md).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.answers.tune import TunedUsers, UsersInterval
from analysis.statistics.samples import finite_or_none, student
from analysis.tune.flags import Limit, Setting
from analysis.tune.response import Response, SimulatedLoad, loads_around
from analysis.twin.maximum import MAX_VIRTUAL_USERS, find_maximum, wall_margins
from analysis.twin.model_error import ModelErrors, Variant, limit_interval, variants_of, with_times
from analysis.twin.source import FittedTwin
from analysis.twin.what_if import NO_CHANGES, changes_of
from analysis.virtual.processes import for_each
from analysis.virtual.run import VirtualFigures, VirtualRun, simulate_users
from analysis.virtual.service import Service
from loadtest.record import Slo
from loadtest.simulator.routers import ROUTERS

ESTIMATE_REQUESTS = 2000
CURVE_REQUESTS, CURVE_REQUESTS_PER_USER = 1000, 8
"""Requests of a probe: fewer than the twin's 3,000, because all settings see the same random numbers."""
SHARED_SEED, OWN_SEED = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workbench:
    """A fitted twin, the errors of its model, and how its users are spread."""

    twin: FittedTwin
    errors: ModelErrors
    router: str

    def changed(self, service: Service, setting: Setting) -> Service:
        """Returns a service with the flags of a setting changed."""
        options = argparse.Namespace(**{**NO_CHANGES, **setting}, seed=0)
        _, change = changes_of(options, service, self.twin.memory)
        return change(service)

    def limit(self, setting: Setting, *, start: int | None = None) -> Limit | None:
        """Finds the users that a setting holds; None if not one."""
        found = find_maximum(
            self.changed(self.twin.fit.service, setting),
            self.twin.slo,
            start=start,
            replicas=self.twin.fit.replicas,
            route=ROUTERS[self.router],
            requests=ESTIMATE_REQUESTS,
        )
        return None if found is None else Limit(x=found.x, wall=found.wall, below=found.below)

    def holds(self, setting: Setting, users: int) -> bool:
        """Whether a setting holds so many users, by one simulation."""
        slo, service = self.twin.slo, self.changed(self.twin.fit.service, setting)
        alone = self._alone(service)
        return max(wall_margins(self._simulated(service, users).figures(slo), slo, alone=alone).values()) <= 0

    def draws(self, limits: Sequence[tuple[Setting, Limit]]) -> list[list[float]]:
        """Returns the users that each setting holds by each refit with its errors: one list a setting."""
        responses = for_each(lambda one: self._response(*one), limits)
        return [
            [
                response.users_with(self.changed(draw, setting), variant)
                for draw, variant in zip(self.twin.draws, self._variants(setting), strict=True)
            ]
            for response, (setting, _) in zip(responses, limits, strict=True)
        ]

    def _response(self, setting: Setting, limit: Limit) -> Response:
        """Simulates a setting around its limit."""
        service, slo = self.changed(self.twin.fit.service, setting), self.twin.slo
        x = min(limit.x, MAX_VIRTUAL_USERS)
        return Response(
            service=service,
            slo=slo,
            x=x,
            loads=[SimulatedLoad.of(self._simulated(service, users), slo) for users in loads_around(x)],
            alone=self._alone(service),
        )

    def _alone(self, service: Service) -> VirtualFigures | None:
        """Returns the figures of one user, where the prefix cache has an objective; else None."""
        slo = self.twin.slo
        return None if slo.prefix_hit_fraction is None else self._simulated(service, 1).figures(slo)

    def _simulated(self, service: Service, users: int) -> VirtualRun:
        return simulate_users(
            service,
            users,
            requests=max(CURVE_REQUESTS, CURVE_REQUESTS_PER_USER * users),
            replicas=self.twin.fit.replicas,
            route=ROUTERS[self.router](),
        )

    def _variants(self, setting: Setting) -> list[Variant]:
        changed = [self.changed(draw, setting) for draw in self.twin.draws]
        shared = variants_of(changed, self.twin.slo, self.errors, changed=True, seed=SHARED_SEED)
        return _with_own_errors(shared, self.twin.slo, self.errors) if setting else shared


def _with_own_errors(shared: Sequence[Variant], slo: Slo, errors: ModelErrors) -> list[Variant]:
    """Returns the variants with errors that only the changed setting has, of the usual size."""
    own = variants_of([one.service for one in shared], slo, errors, changed=False, seed=OWN_SEED)
    return [
        Variant(
            service=second.service,
            slo=with_times(
                first.slo,
                ttft=slo.ttft_p95_s / second.slo.ttft_p95_s,
                tpot=slo.tpot_p95_s / second.slo.tpot_p95_s,
            ),
            users_factor=first.users_factor * second.users_factor,
        )
        for first, second in zip(shared, own, strict=True)
    ]


def difference_interval(point: float, ours: Sequence[float], theirs: Sequence[float]) -> UsersInterval:
    """Returns the 90 % interval of how many users more the second setting holds, by Student's t.

    point: the difference of the estimates, which the interval holds. ours, theirs: users by the same refits.
    """
    more = np.array(theirs) - np.array(ours)
    middle, reach = float(more.mean()), student(len(more)) * float(more.std(ddof=1))
    high = max(middle + reach, point)
    return min(middle - reach, point), high if high < MAX_VIRTUAL_USERS / 2 else None


def users_of(limit: Limit | None, drawn: Sequence[float] | None = None) -> TunedUsers:
    """Returns a limit as the answer has it. drawn: users by the refits; without them there is no interval."""
    if limit is None:
        return TunedUsers(x=0.0, wall="not even one user")
    interval = None
    if drawn is not None:
        low, high = limit_interval(limit.x, drawn, largest=MAX_VIRTUAL_USERS)
        interval = (low, finite_or_none(high))
    return TunedUsers(x=finite_or_none(limit.x), interval=interval, wall=limit.wall)


def users_or_most(limit: Limit | None) -> float:
    """Returns the users of a limit as a finite number: 0 for not one, the most searched for no wall."""
    return 0.0 if limit is None else min(limit.x, MAX_VIRTUAL_USERS)
