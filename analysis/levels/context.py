"""Facts by which the levels of pooled runs are judged: objectives, KV-cache pool, request lengths."""

from dataclasses import dataclass

from analysis.levels.failures.classes import FailureClass
from loadtest.record import Slo


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """KV-cache pools of `engines` equal engines.

    blocks: those that requests can hold in one engine, without the null block, which no request gets.
    """

    blocks: int
    block_tokens: int
    engines: int = 1

    @property
    def tokens(self) -> int:
        """KV tokens that the pools of all engines can hold together."""
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
    max_num_seqs: int | None = None
    """Slots of all engines together, as the server or the person states them; None where nobody does."""
    not_load: frozenset[FailureClass] = frozenset()
    """Classes of failures that load does not cause: levels are measured without such requests."""
