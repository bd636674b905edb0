"""TODO."""

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
        """Of all engines together."""
        return self.blocks * self.block_tokens * self.engines


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a level is judged against."""

    slo: Slo
    pool: Pool | None
    largest_prompt_blocks: int
    """Bounds what one arrival asks of the pool."""
    mean_output: float
    """Tokens, and so steps, of a request."""
    mean_end_blocks: float
    """What an ending gives back."""
    thinks: bool
