"""How long requests take and how many of each class are in flight, by averages. Simulates nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.think_time import ActiveShare, ClassPace, Thinking, always_active
from analysis.sizing.workload import PlannedClass, PlannedWorkload
from analysis.statistics.arrays import Floats
from loadtest.model.step_time import PredictedStepTime
from loadtest.workload.classes import users_by_weight

FEW_AND_MANY = (8.0, 64.0)
"""Sequences of the two steps from which the growth of a request's duration is taken."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The durations of requests and the pauses of each class of users."""

    classes: Sequence[ClassPace]
    """At least one. Requests in flight of all classes slow each other down."""

    @property
    def thinks(self) -> bool:
        """Whether some users pause between requests."""
        return any(one.think_s > 0 for one in self.classes)

    def active(self, users: int) -> float:
        """Returns the share of the time in which a random user has a request in flight.

        A single class: p = R / (R + Z). Z is the pause, R = idle + slope * n the duration of a request, where
        n is the number of users times the share.
        """
        if not self.thinks:
            return 1.0
        if len(self.classes) == 1:
            return self._thinking.active(users)
        counts = users_by_weight([one.weight for one in self.classes], users)
        shares = [self.of_class(position)(users) for position in range(len(self.classes))]
        return sum(count * share for count, share in zip(counts, shares, strict=True)) / users

    def of_class(self, position: int) -> ActiveShare:
        """Returns `active` of the users of one class alone, as a function of the users of all classes."""
        if not self.thinks:
            return always_active
        thinking = self._thinking
        return thinking.active if len(self.classes) == 1 else thinking.active_of_class(position)

    @property
    def _thinking(self) -> Thinking:
        first = self.classes[0]
        return Thinking(
            think_s=first.think_s, idle_s=first.idle_s, slope_s=first.slope_s, classes=tuple(self.classes)
        )

    def shares_in_flight(self, in_flight: float) -> Floats:
        """Returns the share of each class in the requests in flight, where so many are. Shape (classes,)."""
        present = np.array([one.weight * one.active(in_flight) for one in self.classes])
        return np.asarray(present / present.sum())

    def requests_each(self, in_flight: float) -> Floats:
        """Returns the requests a second of one user of each class, with so many requests in flight. Shape
        (classes,)."""
        return np.array([1.0 / (one.duration_s(in_flight) + one.think_s) for one in self.classes])


def predicted_pace(steps: PredictedStepTime, workload: PlannedWorkload) -> Pace:
    """Predicts the pace of each class.

    A request takes a step for each token of its answer, and the time that its prompt adds to steps. A step
    takes the longer, the more sequences decode and the more prompts begin in it.
    """
    held, prompts_s = workload.mean_held_tokens, [_prompt_s(steps, one) for one in workload.classes]
    outputs = [float(one.output.mean()) for one in workload.classes]
    few_s, many_s = (steps.decode_s(sequences, held) for sequences in FEW_AND_MANY)
    begun_s = [added_s / output for added_s, output in zip(prompts_s, outputs, strict=True)]
    each_s = (many_s - few_s) / (FEW_AND_MANY[1] - FEW_AND_MANY[0]) + float(workload.user_shares @ begun_s)
    return Pace(
        [
            ClassPace(
                weight=one.weight,
                think_s=one.mean_pause_s,
                idle_s=output * few_s + added_s + steps.outside_s(float(one.prompt.mean())),
                slope_s=output * each_s,
            )
            for one, output, added_s in zip(workload.classes, outputs, prompts_s, strict=True)
        ]
    )


def _prompt_s(steps: PredictedStepTime, users: PlannedClass) -> float:
    """Returns the time that the mean prompt of a class adds to steps, seconds, without what is cached."""
    computed = float(users.computed_tokens.mean())
    return steps.prompt_s(computed, after=float(users.prompt.mean()) - computed)
