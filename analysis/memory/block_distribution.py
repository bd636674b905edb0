"""Distribution of one request's KV blocks over its steps, and the pressure of N such users on the pool."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from analysis.evidence.lengths import LengthPairs
from analysis.evidence.think_time import ActiveShare, always_active
from analysis.statistics.arrays import Floats

SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockDistribution:
    """Distributions over the number of blocks, k = 0..K, shape (K + 1,) each."""

    held: Floats
    """pi_k: share of a request's steps in which it holds k blocks."""
    growth: Floats
    """G_k: mean number of times that one request grows from k to k + 1 blocks."""
    entry: Floats
    """kappa_k: share of prompts that take k blocks."""
    steps: float
    """E[o]: mean number of steps of a request."""

    @property
    def mean(self) -> float:
        """Mean blocks that one request holds, over its steps."""
        return float(self.held @ np.arange(len(self.held)))

    @property
    def sd(self) -> float:
        """Standard deviation of the blocks that one request holds, over its steps."""
        place = np.arange(len(self.held))
        return math.sqrt(max(float(self.held @ place**2) - self.mean**2, 0.0))

    @property
    def q(self) -> float:
        """Growths while decoding divided by the prompt's mean blocks: q = sum_k G_k / E[kappa]."""
        return float(self.growth.sum() / (self.entry @ np.arange(len(self.entry))))


def block_distribution(
    pairs: LengthPairs, *, block_tokens: int, weight: Floats | None = None
) -> BlockDistribution:
    """Computes the distribution of ceil((s + j) / b) over the steps j = 0..o-1 of all length pairs (s, o).

    weight: how often each pair counts, shape (n,). Whole blocks that all prompts share are left out.
    """
    shared = pairs.shared_prefix // block_tokens * block_tokens
    prompt = np.maximum(pairs.prompt - shared, 1)
    top = int((prompt + pairs.output).max()) // block_tokens + 2
    steps = np.bincount(prompt, weight, top * block_tokens + 1) - np.bincount(
        prompt + pairs.output, weight, top * block_tokens + 1
    )
    at_length = np.cumsum(steps)[1:]  # number of steps with exactly 1, 2, ... tokens
    held = np.concatenate([[0.0], at_length.reshape(top, block_tokens).sum(axis=1)])
    first = -(-prompt // block_tokens)
    last = -(-(prompt + pairs.output - 1) // block_tokens)
    requests = float(len(pairs) if weight is None else weight.sum())
    starts = np.bincount(first, weight, top + 1)
    growth = np.cumsum(starts - np.bincount(last, weight, top + 1))
    return BlockDistribution(
        held=held / held.sum(),
        growth=np.maximum(growth, 0.0) / requests,
        entry=starts / requests,
        steps=float(held.sum()) / requests,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressure:
    """Pressure of N users on the pool."""

    preempted: float
    """F(N): preemptions for each finished request."""
    blocked: float
    """eps(N): share of the time in which a request waits for blocks."""


class Occupancy:
    """Pressure of any number of users on a pool of C blocks.

    F(N) = sum_k G_k p_{N-1}(C - k) + (q/2) W(N) and eps(N) = P(B_N > C), with p_n the n-fold convolution of
    pi (docs/method.md). `active(N)` is the share of the time in which a user is in flight. In that time a
    user holds blocks in E[o] of E[o] + 1 steps: the step after an answer's last one begins before the next
    request arrives. Otherwise the user holds no blocks.
    """

    def __init__(
        self, distribution: BlockDistribution, blocks: int, active: ActiveShare = always_active
    ) -> None:
        self._distribution, self._blocks, self._active = distribution, blocks, active
        size = fft.next_fast_len(3 * (blocks + 1), real=True)  # room for twice the users at the wall
        self._size = size
        self._held = fft.rfft(_folded(distribution.held, size), size)
        top = min(len(distribution.held), blocks + 1)
        self._held_now, self._growth, self._entry = (
            distribution.held[:top],
            distribution.growth[:top],
            distribution.entry[:top],
        )
        self._half_q = distribution.q / 2
        self._known: dict[int, Pressure] = {}

    def at(self, users: int) -> Pressure:
        """Returns the pressure of `users` users, at least 1."""
        if users not in self._known:
            self._known[users] = self._pressure(users)
        return self._known[users]

    def _pressure(self, users: int) -> Pressure:
        p = self._active(users) * self._distribution.steps / (self._distribution.steps + 1.0)
        others = fft.irfft(self._power(p, users - 1), self._size)[: self._blocks + 1]
        fits = np.cumsum(others)[::-1][: len(self._entry)]  # P(B_{N-1} <= C - k)
        full = others[::-1][: len(self._growth)]  # p_{N-1}(C - k)
        waits = 1.0 - float(self._entry @ fits)
        mine = (1.0 - p) * float(fits[0]) + p * float(self._held_now @ fits)
        return Pressure(
            preempted=max(float(self._growth @ full) + self._half_q * waits, 0.0),
            blocked=min(max(1.0 - mine, 0.0), 1.0),
        )

    def _power(self, p: float, times: int) -> NDArray[np.complex128]:
        """Returns the transform of the blocks of `times` users by squaring, which is faster than `**`."""
        square = 1.0 - p + p * self._held
        power = np.ones_like(square)
        while times:
            if times & 1:
                power = power * square
            times >>= 1
            if times:
                square = square * square
        return power


def _folded(held: Floats, size: int) -> Floats:
    """Shortens the distribution to `size` cells; the last sums the tail, since such a request never fits."""
    if len(held) <= size:
        return held
    return np.append(held[: size - 1], held[size - 1 :].sum())
