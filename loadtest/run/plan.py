"""TODO."""

from collections.abc import Iterator

import msgspec

from loadtest.errors import InputError
from loadtest.settings import Settings
from loadtest.workload.arrivals import Arrival, ArrivalProcess
from loadtest.workload.prompts import PromptScale
from loadtest.workload.traces import read_trace


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What the leader tells every process that measures. Holds no secrets."""

    run_id: str
    folder: str
    host: str
    model: str
    scenario: str
    max_model_len: int | None
    scale: PromptScale
    nonce: str
    settings: dict[str, object]

    @classmethod
    def read(cls, text: str) -> "Plan":
        return msgspec.json.decode(text, type=cls)

    def write(self) -> str:
        return msgspec.json.encode(self).decode()


def planned_arrivals(settings: Settings) -> Iterator[Arrival]:
    """The arrivals of an open loop, the same in every process; none in a closed one. Raises InputError."""
    if settings.trace is not None:
        try:
            return iter(read_trace(settings.trace, speed=settings.trace_speed))
        except (ValueError, OSError) as error:
            raise InputError(f"--trace: {error}") from None
    if settings.arrivals is not None:
        law = ArrivalProcess.parse(settings.arrivals)
        return law.arrivals(seed=settings.seed, duration_s=settings.level_s)
    return iter(())
