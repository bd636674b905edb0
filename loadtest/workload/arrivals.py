"""Open loop: when requests are due, whether the server has answered or not. Laws and traces -> Arrival. Knows
no network and no clock."""

import csv
import datetime
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

TRACE_BLOCK_TOKENS = 512
"""Tokens of a prefix block in Mooncake's traces (each id in `hash_ids` names the block and all before it)."""
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


class _TraceLine(msgspec.Struct):
    """One line of a Mooncake trace."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(gt=0)]
    output_length: Annotated[int, msgspec.Meta(gt=0)]
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path, *, speed: float) -> list[Arrival]:
    """A trace in the order of its times, from 0, `speed` times as fast as recorded.

    Reads Mooncake's JSONL (`timestamp` in ms, `input_length`, `output_length`, `hash_ids`), the Azure LLM
    inference CSV (`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`), and a plain CSV of seconds, prompt tokens
    and output tokens. Requests without an output (some traces have them) ask for one token. Raises
    ValueError, naming the line, and OSError.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        first = lines.readline()
        lines.seek(0)
        rows = list(_read_jsonl(path, lines) if first.lstrip().startswith("{") else _read_csv(path, lines))
    if not rows:
        raise ValueError(f"{path} holds no requests.")
    rows.sort(key=lambda row: row.due_s)
    start = rows[0].due_s
    return [row._replace(number=i, due_s=(row.due_s - start) / speed) for i, row in enumerate(rows)]


def _read_jsonl(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_TraceLine)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}, line {number}: not a line of a trace ({error}).") from error
        yield Arrival(0, row.timestamp / 1000, row.input_length, row.output_length, row.hash_ids)


def _read_csv(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    for number, row in enumerate(csv.reader(lines), start=1):
        if not row or (number == 1 and _is_header(row)):
            continue
        try:
            due, prompt, output = row
            yield Arrival(0, _seconds(due), max(1, int(prompt)), max(1, int(output)))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a time, prompt tokens and output tokens ({error})."
            ) from error


def _is_header(row: list[str]) -> bool:
    return not any(cell.strip().isdigit() for cell in row[1:])


def _seconds(text: str) -> float:
    """Seconds, or a date and time (Azure's have seven decimals, of which Python reads six)."""
    try:
        return float(text)
    except ValueError:
        moment = datetime.datetime.fromisoformat(text.strip()[:26])
        return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
