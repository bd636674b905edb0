"""What a level is judged against: the objectives, the KV pool, and the lengths of the whole run."""

from dataclasses import dataclass

from loadtest.record import Slo


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """KV blocks that requests can hold (the null block taken off), in tokens each, all engines alike."""

    blocks: int
    block_tokens: int
    engines: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that the pools of all engines hold."""
        return self.blocks * self.block_tokens * self.engines


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a level is judged against."""

    slo: Slo
    pool: Pool | None
    largest_prompt_blocks: int
    """The most that one arrival asks of the pool."""
    mean_output: float
    """Output tokens of a request, and so its decode steps."""
    mean_end_blocks: float
    """What a request that ends gives back to the pool."""
    thinks: bool
