"""A step of the engine, and the counters and gauges that the engine shows. Knows no scheduler."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from loadtest.simulator.engine.requests import Request

OnStep = Callable[[float, int, int, int, "Shortage"], None]
"""A function that is called at a step's end with the instant and the gauges, in the order of `Gauges`."""


class Shortage(IntEnum):
    """What the first waiting request lacked when the step began: blocks, or a slot (`max_num_seqs`). A lack
    of token budget counts as NOTHING."""

    NOTHING = 0
    BLOCKS = 1
    SLOTS = 2


class Step:
    """One step: the requests that it computes, and those that end with it."""

    __slots__ = ("duration_s", "end_s", "finished", "first", "number", "prefill_tokens", "tokens")

    def __init__(self, *, number: int, duration_s: float, prefill_tokens: int, tokens: list[Request]) -> None:
        self.number = number
        self.duration_s = duration_s
        self.end_s = math.nan
        self.prefill_tokens = prefill_tokens
        self.tokens = tokens
        """Requests that get one token each, in order of admission."""
        self.first: list[Request] = []
        """Requests of `tokens` that complete a prefill: their first token, or the first after a
        preemption."""
        self.finished: list[Request] = []
        """Requests of `tokens` that get their last token."""

    def drop(self, request: Request) -> None:
        """Removes an aborted request from the step."""
        for requests in (self.tokens, self.first, self.finished):
            if request in requests:
                requests.remove(request)


@dataclass(slots=True)
class Counters:
    """Totals since the start. Each is increased at the same moment as in vLLM."""

    preemptions: int = 0
    """Preemptions, counted with the preempted request's next token, as in vLLM's front end."""
    prompt_tokens: int = 0
    """Prompt tokens, cached ones included, counted with the first token."""
    generation_tokens: int = 0
    prefix_queries: int = 0
    """Tokens looked up in the prefix cache at first admissions."""
    prefix_hits: int = 0
    """Tokens found in the prefix cache at first admissions."""
    finished: int = 0
    aborted: int = 0
    rejected: int = 0
    """Requests rejected because of `max_num_queued_reqs`."""
    rejected_for_tokens: int = 0
    """Requests rejected because of `max_num_queued_tokens`."""
    steps: int = 0


@dataclass(slots=True)
class Gauges:
    """Current values as vLLM shows them. They are taken at the end of a step, after ended requests have freed
    their blocks and before other requests are admitted."""

    running: int = 0
    waiting: int = 0
    """Waiting requests, all of them for capacity: the simulator defers none."""
    used_blocks: int = 0
    """Blocks that running requests hold, shared ones counted once."""
    shortage: Shortage = Shortage.NOTHING
    """What the first waiting request lacked; vLLM does not show this."""
