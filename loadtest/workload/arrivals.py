"""Arrivals of an open loop: when each request is due and which worker sends it. The times do not depend on
the server. Knows no network and no clock."""

import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

_RATE = r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?"
_LAW = re.compile(rf"(constant|poisson|gamma):{_RATE}(?:,(\d+(?:\.\d+)?))?")


class Arrival(NamedTuple):
    """One request of an open loop."""

    number: int
    due_s: float
    """When the request is due, in seconds after the start of the arrivals."""
    prompt_tokens: int | None = None
    """Length of the prompt; None if it is drawn from the workload's distribution."""
    output_tokens: int | None = None
    """Length of the answer; None if it is drawn from the workload's distribution."""
    prefix_blocks: tuple[int, ...] = ()
    """Ids of the prompt's blocks: prompts with the same first ids begin with the same text. Empty: no shared
    text."""


class ArrivalProcess(msgspec.Struct, frozen=True):
    """How the arrivals follow each other: `constant:RATE`, `poisson:RATE` or `gamma:RATE,BURSTINESS`.

    Rates are in requests per second. A rate `FROM-TO` changes linearly during the run. BURSTINESS is defined
    as in vLLM's benchmark: 1 gives a Poisson process, and smaller values give burstier arrivals. The gaps
    between arrivals have a gamma distribution with the shape BURSTINESS. Their coefficient of variation is
    1 / sqrt(BURSTINESS).
    """

    kind: Literal["constant", "poisson", "gamma"]
    rate: float
    end_rate: float
    burstiness: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "ArrivalProcess":
        """Reads a process from its text form. Raises ValueError, with the accepted forms in the message."""
        match = _LAW.fullmatch(text.strip())
        if match:
            kind, rate, end_rate, burstiness = match.groups()
            process = cls(kind, float(rate), float(end_rate or rate), float(burstiness or 1))  # type: ignore[arg-type]
            if (
                (kind == "gamma") == (burstiness is not None)
                and process.rate + process.end_rate
                and process.burstiness
            ):
                return process
        raise ValueError(
            f"'{text}' is not an arrival process: write constant:RATE, poisson:RATE or "
            "gamma:RATE,BURSTINESS, RATE in requests per second or FROM-TO, "
            "for example poisson:4 or poisson:1-10."
        )

    def arrivals(self, *, seed: int, duration_s: float) -> Iterator[Arrival]:
        """Yields the arrivals of `duration_s` seconds; equal seeds give equal arrivals.

        First, arrivals are drawn at a constant rate of 1 per second. Then their times are stretched or
        compressed to the wanted rate: an arrival drawn at x seconds is due when the wanted rate, integrated
        from the start of the run, reaches x.
        """
        rng = random.Random(f"arrivals/{seed}")
        point, number = 0.0, 0
        while True:
            point += self._gap(rng)
            due_s = self._time_at(point, duration_s)
            if due_s is None:
                return
            yield Arrival(number, due_s)
            number += 1

    def mean_count(self, duration_s: float) -> float:
        """The expected number of arrivals in `duration_s` seconds."""
        return (self.rate + self.end_rate) / 2 * duration_s

    def _gap(self, rng: random.Random) -> float:
        match self.kind:
            case "constant":
                return 1.0
            case "poisson":
                return rng.expovariate(1.0)
            case "gamma":
                return rng.gammavariate(self.burstiness, 1 / self.burstiness)

    def _time_at(self, integral: float, duration_s: float) -> float | None:
        """Returns the time, in seconds, at which the rate, integrated from the start, reaches `integral`.
        None if this is not before `duration_s`. The rate is linear in time, so the time solves a quadratic
        equation. The solution has the square root in the denominator: it also holds for a constant rate."""
        slope = (self.end_rate - self.rate) / duration_s
        if integral >= self.mean_count(duration_s):
            return None
        root = math.sqrt(max(0.0, self.rate**2 + 2 * slope * integral))
        return 2 * integral / (self.rate + root)


class WorkerAssignment(NamedTuple):
    """The workers that send the arrivals due at `from_s` or later, until the next assignment begins. Arrival
    n is sent by `workers[n % len(workers)]`."""

    from_s: float
    workers: tuple[str, ...]


def is_assigned(arrival: Arrival, worker: str, assignments: Sequence[WorkerAssignment]) -> bool:
    """Whether `worker` sends this arrival. `assignments` are sorted by time, and the arrival belongs to the
    last assignment with `from_s` <= `due_s`. An arrival before the first assignment is sent by no worker."""
    workers = next((each.workers for each in reversed(assignments) if each.from_s <= arrival.due_s), ())
    return bool(workers) and workers[arrival.number % len(workers)] == worker
