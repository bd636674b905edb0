"""Open loop: when requests are due, whether the server has answered or not. Laws and traces -> Arrival. Knows
no network and no clock."""

import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

_RATE = r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?"
_LAW = re.compile(rf"(constant|poisson|gamma):{_RATE}(?:,(\d+(?:\.\d+)?))?")


class Arrival(NamedTuple):
    """One request that is due."""

    number: int
    due_s: float
    """Seconds after the start of the arrivals."""
    prompt_tokens: int | None = None
    """None: drawn from the workload's law."""
    output_tokens: int | None = None
    prefix_blocks: tuple[int, ...] = ()
    """Requests with the same first ids have the same first text."""


class ArrivalProcess(msgspec.Struct, frozen=True):
    """A renewal process: `constant:RATE`, `poisson:RATE`, `gamma:RATE,BURSTINESS`, in requests a second; a
    RATE of `FROM-TO` rises or falls evenly. Burstiness is the shape of the gamma law of the gaps, as in the
    benchmark of vLLM: 1 is Poisson, smaller is burstier (coefficient of variation 1 / sqrt(shape))."""

    kind: Literal["constant", "poisson", "gamma"]
    rate: float
    end_rate: float
    burstiness: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "ArrivalProcess":
        """Raises ValueError with a sentence that names the accepted forms."""
        match = _LAW.fullmatch(text.strip())
        if match:
            kind, rate, end_rate, burstiness = match.groups()
            law = cls(kind, float(rate), float(end_rate or rate), float(burstiness or 1))  # type: ignore[arg-type]
            if (kind == "gamma") == (burstiness is not None) and law.rate + law.end_rate and law.burstiness:
                return law
        raise ValueError(
            f"'{text}' is not a law of arrivals: write constant:RATE, poisson:RATE or gamma:RATE,BURSTINESS, "
            "RATE in requests a second or FROM-TO, for example poisson:4 or poisson:1-10."
        )

    def arrivals(self, *, seed: int, duration_s: float) -> Iterator[Arrival]:
        """The arrivals of `duration_s`; the same for the same seed. A process of rate 1 is laid over the
        integral of the rate: of rate r(t), the n-th arrival is where the integral reaches the n-th point."""
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
        """Where rate * t + slope * t^2 / 2 reaches `integral`; None behind the end. Written with the root in
        the denominator, which holds for a slope of 0 too."""
        slope = (self.end_rate - self.rate) / duration_s
        if integral >= self.mean_count(duration_s):
            return None
        root = math.sqrt(max(0.0, self.rate**2 + 2 * slope * integral))
        return 2 * integral / (self.rate + root)


class WorkerAssignment(NamedTuple):
    """From when on which workers send: the n-th arrival is the (n mod their number)-th one's."""

    from_s: float
    workers: tuple[str, ...]


def is_assigned(arrival: Arrival, worker: str, shares: Sequence[WorkerAssignment]) -> bool:
    """Whether `worker` sends this arrival; `shares` in the order of their times. Nobody sends what is due
    before the first."""
    workers = next((share.workers for share in reversed(shares) if share.from_s <= arrival.due_s), ())
    return bool(workers) and workers[arrival.number % len(workers)] == worker
