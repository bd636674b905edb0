"""A second implementation of the memory formulas of docs/method.md, for tests. It does not use `analysis`.

A request of s prompt and o output tokens holds ceil((s + j) / b) blocks at steps j = 0 .. o - 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK = 32
"""Tokens in a block."""
PREEMPTED = 0.01
"""Limit of preemptions per finished request."""
BLOCKED = 0.1
"""Limit of the share of time in which a request waits for blocks."""


@dataclass(frozen=True)
class ReferenceBlocks:
    """Statistics of the blocks of requests with given lengths. Index k of each array stands for k blocks."""

    held: np.ndarray
    """Share of steps in which a request holds k blocks."""
    growths: np.ndarray
    """Mean number of times that a request grows from k to k + 1 blocks."""
    prompt: np.ndarray
    """Share of prompts that need k blocks."""

    @classmethod
    def of(cls, prompt: np.ndarray, output: np.ndarray) -> "ReferenceBlocks":
        size = int((prompt + output).max()) // BLOCK + 2
        held, growths, first = np.zeros(size), np.zeros(size), np.zeros(size)
        for s, o in zip(prompt.tolist(), output.tolist(), strict=True):
            blocks = -(-(s + np.arange(o)) // BLOCK)
            held += np.bincount(blocks, minlength=size)
            growths += np.bincount(blocks[:-1][np.diff(blocks) > 0], minlength=size)
            first[blocks[0]] += 1
        return cls(held / held.sum(), growths / len(prompt), first / len(prompt))

    @property
    def mean_tokens(self) -> float:
        """Mean KV tokens that a request in flight holds, in whole blocks."""
        return float(self.held @ np.arange(len(self.held))) * BLOCK

    def wall(self, capacity: int, most: int = 400) -> float:
        """Returns the users, real-valued, at which the first limit is passed: PREEMPTED or BLOCKED.

        `capacity`: blocks of the pool without the null block. `most`: highest number of users tried.
        """
        rates = [self._rates(others, capacity) for others in self._convolutions(most)]
        preempted, blocked = np.array(rates).T
        return min(_crossing(preempted, PREEMPTED, np.log), _crossing(blocked, BLOCKED, _logit))

    def _convolutions(self, most: int) -> list[np.ndarray]:
        """Returns the distributions of blocks held by 0, 1, .. `most` users together."""
        sums = [np.ones(1)]
        for _ in range(most):
            sums.append(np.convolve(sums[-1], self.held))
        return sums

    def _rates(self, others: np.ndarray, capacity: int) -> tuple[float, float]:
        """Returns F and eps of docs/method.md for one user more than `others` has."""
        k = np.arange(len(self.held))
        exactly = np.zeros(capacity + 1)
        exactly[: min(len(others), capacity + 1)] = others[: capacity + 1]
        upto = np.cumsum(exactly)
        left = capacity - k
        fits = left >= 0
        full = self.growths[fits] @ exactly[left[fits]]
        no_room = 1 - self.prompt[fits] @ upto[left[fits]]
        growth_over_prompt = self.growths.sum() / (self.prompt @ k)
        blocked = np.convolve(others, self.held)[capacity + 1 :].sum()
        return full + growth_over_prompt / 2 * no_room, blocked


def _logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p / (1 - p)))


def _crossing(rates: np.ndarray, limit: float, scale: Callable[[np.ndarray], np.ndarray]) -> float:
    """Returns the users at which the rate passes the limit, interpolated in `scale` between whole users.

    rates[i] is the rate with i + 1 users.
    """
    above = int(np.argmax(rates > limit))
    assert rates[above] > limit
    assert above > 0
    low, high, target = scale(np.clip([rates[above - 1], rates[above], limit], 1e-12, 1 - 1e-12))
    return above + float((target - low) / (high - low))
