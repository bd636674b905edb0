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
        "_admission",
        "_computed",
        "_duplicates",
        "_made",
        "_registered",
        "_run_start",
        "_target",
        "_unreported",
        "admitted_s",
        "arrival_s",
        "block_hashes",
        "cached_tokens",
        "end_s",
        "first_token_s",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
        "state",
        "step_runs",
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
        self._made = 0
        self._target = prompt_tokens
        self._computed = 0
        self._run_start = 0
        self._admission = 0
        self._unreported = 0
        self._registered = 0
        self._duplicates: set[int] = set()
