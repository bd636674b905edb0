"""Context of all levels of pooled runs: the objectives, the KV pool, and the lengths of all requests."""

from dataclasses import dataclass

from loadtest.record import Slo


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """KV pools of `engines` equal engines. `blocks`: those of one engine that requests can hold (not the
    null block)."""

    blocks: int
    block_tokens: int
    engines: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that the pools of all engines hold together."""
        return self.blocks * self.block_tokens * self.engines


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a level is judged by: the objectives, and facts that are known from all levels together."""

    slo: Slo
    pool: Pool | None
    largest_prompt_blocks: int
    """Blocks of the largest prompt, without a prefix that all prompts share."""
    mean_output: float
    """Mean output tokens of a request, which are its decode steps; infinite where no lengths are known."""
    mean_end_blocks: float
    """Mean blocks that a request frees when it ends; 0 where no lengths are known."""
    thinks: bool
