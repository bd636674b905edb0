"""TODO."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from loadtest.simulator.requests import Request

OnStep = Callable[[float, int, int, int, "Shortage"], None]
"""Is told of a step's end: the instant, and the gauges in their order."""


class Shortage(IntEnum):
    """What a request waited for as the step began. Waiting for the step's token budget is none of it."""

    NOTHING = 0
    BLOCKS = 1
    SLOTS = 2


class Step:
    """One step: what was scheduled, and what its end brought."""

    __slots__ = ("duration_s", "end_s", "finished", "first", "number", "prefill_tokens", "tokens")

    def __init__(self, *, number: int, duration_s: float, prefill_tokens: int, tokens: list[Request]) -> None:
        self.number = number
        self.duration_s = duration_s
        self.end_s = math.nan
        self.prefill_tokens = prefill_tokens
        self.tokens = tokens
        """Requests that get one token each, in order of admission."""
        self.first: list[Request] = []
        """Those of `tokens` that complete a prefill: first tokens, and first after a preemption."""
        self.finished: list[Request] = []
        """Those of `tokens` that get their last one."""

    def drop(self, request: Request) -> None:
        for requests in (self.tokens, self.first, self.finished):
            if request in requests:
                requests.remove(request)


@dataclass(slots=True)
class Counters:
    """Running totals, incremented when vLLM's are."""

    preemptions: int = 0
    """Counted with the victim's next token, as vLLM's front end does."""
    prompt_tokens: int = 0
    """Counted with the first token; cached ones included."""
    generation_tokens: int = 0
    prefix_queries: int = 0
    """Tokens looked up, at a first admission."""
    prefix_hits: int = 0
    finished: int = 0
    aborted: int = 0
    rejected: int = 0
    """For `max_num_queued_reqs`."""
    rejected_for_tokens: int = 0
    """For `max_num_queued_tokens`."""
    steps: int = 0


@dataclass(slots=True)
class Gauges:
    """As vLLM shows them: taken at a step's end, after endings are freed and before admissions."""

    running: int = 0
    waiting: int = 0
    """All for capacity: nothing here is ever deferred."""
    used_blocks: int = 0
    """Blocks that live requests hold, shared ones once."""
    shortages: Shortage = Shortage.NOTHING
    """vLLM does not show this."""
