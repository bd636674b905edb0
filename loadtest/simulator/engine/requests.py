"""A request in the engine: its lengths, its state and its times. Knows no scheduler."""

from collections.abc import Sequence
from enum import Enum


class RequestState(Enum):
    """The states of a request."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    ENDING = "ending"
    """The request's last token is being computed."""
    FINISHED = "finished"
    ABORTED = "aborted"
    REFUSED = "refused"


class Request:
    """One request and its history. Instants are in the driver's time and None until they happen.

    `block_hashes` has one hash for each full block of the prompt *and* the output, because the simulator
    knows the output beforehand. Each hash stands for all text up to the end of its block. A request without
    hashes (None) shares no blocks. After a preemption, such a request must recompute all its blocks.
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
        "pause_s",
        "preemptions",
        "prefill_target",
        "prompt_tokens",
        "refused_with",
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
        """A number for the driver's own use."""
        self.pause_s: float | None = None
        """Seconds that the user pauses because this request failed. For the driver's own use too."""
        self.state = RequestState.WAITING
        self.arrival_s = 0.0
        self.admitted_s: float | None = None
        """Instant of the first admission; preemptions do not change it."""
        self.first_token_s: float | None = None
        self.end_s: float | None = None
        """Instant of the last token, of the abort, or of the refusal."""
        self.refused_with: int | None = None
        """HTTP status of a refusal; None for a request that was taken."""
        self.preemptions = 0
        self.cached_tokens = 0
        """Prompt tokens found in the prefix cache at the first admission."""
        self.step_runs: list[tuple[int, int]] = []
        """Half-open ranges of step numbers; each of these steps made one token."""
        # What follows belongs to the scheduler.
        self.made_tokens = 0
        """Output tokens made before the current run of decode steps."""
        self.prefill_target = prompt_tokens
        """Tokens to compute before the next token can be made."""
        self.computed_tokens = 0
        """Tokens in the KV cache; during decoding, their number at the end of the prefill."""
        self.run_start_step = 0
        """Number of the step that completed the last prefill."""
        self.admission_number = 0
        self.unreported_preemptions = 0
        """Preemptions that `Counters` does not include yet."""
        self.registered_blocks = 0
        """Number of leading blocks whose hash is in the pool."""
        self.duplicate_blocks: set[int] = set()
        """Indices of registered blocks whose hash another request had cached before."""
