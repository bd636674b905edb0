"""How many KV-cache blocks a request holds, and how often the pool has too few for N users ("pressure")."""

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
    """How many blocks one request holds. Each array has shape (K + 1,), for k = 0..K blocks."""

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
        """Mean number of blocks that a request holds, averaged over its steps."""
        return float(self.held @ np.arange(len(self.held)))

    @property
    def sd(self) -> float:
        """Standard deviation of the number of blocks that a request holds, over its steps."""
        place = np.arange(len(self.held))
        return math.sqrt(max(float(self.held @ place**2) - self.mean**2, 0.0))

    @property
    def q(self) -> float:
        """Mean number of blocks that a request adds while it decodes, divided by the mean number of blocks of
        its prompt: q = sum_k G_k / E[kappa]."""
        return float(self.growth.sum() / (self.entry @ np.arange(len(self.entry))))


def block_distribution(
    pairs: LengthPairs, *, block_tokens: int, weight: Floats | None = None
) -> BlockDistribution:
    """Computes how many blocks a request holds over its steps, from measured lengths.

    A request with a prompt of s tokens and an answer of o tokens holds ceil((s + j) / b) blocks of b tokens
    in steps j = 0..o-1. If all prompts share a prefix, its full blocks do not count. weight: how often each
    pair (s, o) counts, shape (n,); by default once.
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
    """How often the KV-cache pool has too few blocks for N users."""

    preempted: float
    """F(N): preemptions for each finished request."""
    blocked: float
    """eps(N): share of the time in which a request waits for blocks."""


class Occupancy:
    """Computes the `Pressure` of N users on a pool of C blocks, for any N.

    - Preemptions per finished request: F(N) = sum_k G_k p_{N-1}(C - k) + (q/2) W(N).
    - Share of the time in which a request waits for blocks: eps(N) = P(B_N > C).

    B_n is the number of blocks that n independent users need together. p_n(k) is the probability of B_n = k.
    W(N) is the probability that the blocks of a new prompt do not fit. G_k and q are defined in
    `BlockDistribution`. docs/method.md derives both formulas.

    `active(N)` is the share of the time in which a user has a request in flight. Of this time, the user holds
    blocks in E[o] of E[o] + 1 steps (E[o]: mean output tokens), because the engine begins one more step
    before the next request arrives.
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
        """Returns the preemptions and the waiting for blocks of `users` users (at least 1)."""
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
        """Returns the Fourier transform of the distribution of the blocks that `times` users hold together.

        One user holds blocks with probability `p`. Repeated squaring in place is faster than `**` here.
        """
        square = 1.0 - p + p * self._held
        power = np.ones_like(square)
        while times:
            if times & 1:
                power *= square
            times >>= 1
            if times:
                square *= square
        return power


def _folded(held: Floats, size: int) -> Floats:
    """Shortens the distribution of a request's blocks to `size` cells. The last cell gets the sum of the
    tail, which stands for requests too large for the pool."""
    if len(held) <= size:
        return held
    return np.append(held[: size - 1], held[size - 1 :].sum())
