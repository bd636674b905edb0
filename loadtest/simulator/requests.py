"""TODO."""

from collections.abc import Sequence
from enum import Enum


class RequestState(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    ENDING = "ending"
    """Its last token is being computed."""
    FINISHED = "finished"
    ABORTED = "aborted"


class Request:
    """One request and what became of it. Instants are in the driver's clock; None until they happen.

    `block_hashes` name the full blocks of prompt *and* output (the output is known beforehand here), each
    hash standing for everything up to its block's end; None for text that nobody shares. Without hashes a
    preempted request does not find its own blocks again.
    """

    __slots__ = (
        "admission_number",
        "admitted_s",
        "arrival_s",
        "block_hashes",
        "cached_tokens",
        "computed_tokens",
        "duplicate_blocks",
        "end_s",
        "first_token_s",
        "made_tokens",
        "output_tokens",
        "preemptions",
        "prefill_target",
        "prompt_tokens",
        "registered_blocks",
        "run_start_step",
        "state",
        "step_runs",
        "unreported_preemptions",
        "user",
    )

    def __init__(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        block_hashes: Sequence[int] | None = None,
        user: int = 0,
    ) -> None:
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(
                f"A request needs at least one token each way, not {prompt_tokens} and {output_tokens}."
            )
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.block_hashes: Sequence[int] = () if block_hashes is None else block_hashes
        self.user = user
        """Free for the driver."""
        self.state = RequestState.WAITING
        self.arrival_s = 0.0
        self.admitted_s: float | None = None
        """First admission; preemptions leave it."""
        self.first_token_s: float | None = None
        self.end_s: float | None = None
        """Last token, or abort."""
        self.preemptions = 0
        self.cached_tokens = 0
        """Prompt tokens found in the prefix cache at the first admission."""
        self.step_runs: list[tuple[int, int]] = []
        """Half-open ranges of step numbers; each step of them made one token."""
        self.made_tokens = 0
        self.prefill_target = prompt_tokens
        self.computed_tokens = 0
        self.run_start_step = 0
        self.admission_number = 0
        self.unreported_preemptions = 0
        self.registered_blocks = 0
        self.duplicate_blocks: set[int] = set()
