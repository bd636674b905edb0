"""How many KV-cache blocks a request holds, and how often the pool has too few for N users ("pressure")."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from analysis.evidence.lengths import LengthPairs
from analysis.evidence.think_time import ActiveShare, Thinking, active_of, always_active
from analysis.statistics.arrays import Floats
from loadtest.workload.classes import users_by_weight

SMALLEST = 1e-9
POPULAR = 1.0  # requests in flight with a text, on average, from which on it is popular


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


@dataclass(frozen=True, slots=True, eq=False)
class Holders:
    """Users of one class as the pool of KV-cache blocks sees them."""

    distribution: BlockDistribution
    """Blocks of their own that a request holds."""
    active: ActiveShare = always_active
    """Share of the time in which one of them has a request in flight, by the users of all classes."""
    weight: float = 1.0
    """Share of the users, relative to the other classes."""
    requests_each: float = 1.0
    """Requests that one of them sends, relative to the other classes."""
    shared_blocks: int = 0
    """Blocks of each text that their requests share; held once while at least one request with it is in
    flight."""
    shared_texts: Sequence[float] = (1.0,)
    """Popularity of each of these texts."""


def holders_of(
    pairs: LengthPairs, *, block_tokens: int, thinking: Thinking | None, weight: Floats | None = None
) -> list[Holders]:
    """Returns the holders of a run: of each class that has requests, or all users if there are no classes.

    thinking: as one engine sees it. weight: how often each request counts, shape (n,); by default once.
    """
    if not pairs.classes:
        law = block_distribution(pairs, block_tokens=block_tokens, weight=weight)
        return [Holders(law, active_of(thinking))]
    found = []
    for position, one in enumerate(pairs.classes):
        counted = None if weight is None else weight[one.rows]
        requests = float(len(one.rows) if counted is None else counted.sum())
        if requests:
            found.append(
                Holders(
                    distribution=block_distribution(one.pairs, block_tokens=block_tokens, weight=counted),
                    active=active_of(thinking, position),
                    weight=one.weight,
                    requests_each=requests / one.weight,
                    shared_blocks=one.pairs.shared_prefix // block_tokens,
                    shared_texts=one.shared_texts,
                )
            )
    return found


def blocks_of_a_user(holders: Sequence[Holders]) -> tuple[float, float]:
    """Returns mean and standard deviation of the blocks of its own that a request of a random user holds."""
    weights = [one.weight for one in holders]
    means = np.array([one.distribution.mean for one in holders])
    squares = np.array([one.distribution.sd for one in holders]) ** 2 + means**2
    mean = float(np.average(means, weights=weights))
    return mean, math.sqrt(max(float(np.average(squares, weights=weights)) - mean**2, 0.0))


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

    With several classes of users, N_c of the N users belong to each, as in the load test. F is then the mean
    over the requests of all classes. A text that some requests share is held once. A popular one is there
    with the probability that at least one of its requests is in flight, independently of how many are; a rare
    one belongs to the requests that have it, each with its mean part.
    """

    def __init__(self, holders: Sequence[Holders], blocks: int) -> None:
        """holders: the classes of users. blocks: the pool, without the blocks of a text that all share."""
        self._blocks = blocks
        size = fft.next_fast_len(3 * (blocks + 1), real=True)  # room for twice the users at the wall
        self._size = size
        self._weights = [one.weight for one in holders]
        self._classes = [_OccupancyClass(one, blocks, size) for one in holders]
        self._known: dict[int, Pressure] = {}

    def at(self, users: int) -> Pressure:
        """Returns the preemptions and the waiting for blocks of `users` users (at least 1)."""
        if users not in self._known:
            self._known[users] = self._pressure(users)
        return self._known[users]

    def _pressure(self, users: int) -> Pressure:
        counts = users_by_weight(self._weights, users)
        present = [(one, count, one.holding(users)) for one, count in zip(self._classes, counts, strict=True)]
        present = [(one, count, p) for one, count, p in present if count]
        shared = self._shared(present)
        preempted, requests = 0.0, 0.0
        blocked = 1.0
        for one, count, p in present:
            power = one.power(p, count - 1, count)
            for other, others, q in present:
                if other is not one:
                    power = power * other.power(q, others, others)
            if shared is not None:
                power = power * shared
            found = one.pressure(fft.irfft(power, self._size)[: self._blocks + 1], p)
            sent = count * one.requests_each
            preempted += sent * found.preempted
            requests += sent
            blocked = found.blocked  # of all users: the same by each class
        return Pressure(preempted=preempted / requests, blocked=blocked)

    def _shared(
        self, present: "Sequence[tuple[_OccupancyClass, int, float]]"
    ) -> NDArray[np.complex128] | None:
        """Returns the Fourier transform of the distribution of the blocks of shared texts; None without."""
        found = [part for one, count, p in present if (part := one.shared(p, count)) is not None]
        return None if not found else np.prod(found, axis=0)


class _OccupancyClass:
    """One class of users on a pool, prepared for many numbers of users."""

    def __init__(self, holders: Holders, blocks: int, size: int) -> None:
        distribution = holders.distribution
        self.requests_each = holders.requests_each
        self._active, self._steps, self._blocks = holders.active, distribution.steps, blocks
        self._held = fft.rfft(_folded(distribution.held, size), size)
        top = min(len(distribution.held), blocks + 1)
        self._held_now, self._growth, self._entry = (
            distribution.held[:top],
            distribution.growth[:top],
            distribution.entry[:top],
        )
        self._half_q = distribution.q / 2
        shares = np.asarray(holders.shared_texts, dtype=np.float64)
        self._texts = shares / shares.sum() if holders.shared_blocks else np.empty(0)
        self._text_blocks, self._size = holders.shared_blocks, size

    def holding(self, users: int) -> float:
        """Returns the probability that a user of the class holds blocks, at `users` users of all classes."""
        return self._active(users) * self._steps / (self._steps + 1.0)

    def pressure(self, others: Floats, p: float) -> Pressure:
        """Returns the pressure that one user of the class sees.

        others: distribution of the blocks that all other users hold, shape (blocks + 1,).
        """
        fits = np.cumsum(others)[::-1][: len(self._entry)]  # P(B_{N-1} <= C - k)
        full = others[::-1][: len(self._growth)]  # p_{N-1}(C - k)
        waits = 1.0 - float(self._entry @ fits)
        mine = (1.0 - p) * float(fits[0]) + p * float(self._held_now @ fits)
        return Pressure(
            preempted=max(float(self._growth @ full) + self._half_q * waits, 0.0),
            blocked=min(max(1.0 - mine, 0.0), 1.0),
        )

    def shared(self, p: float, users: int) -> NDArray[np.complex128] | None:
        """Returns the Fourier transform of the blocks of the class's popular texts; None if it has none."""
        popular = self._texts[p * self._texts * users >= POPULAR]
        if not len(popular):
            return None
        text = self._blocks_of(float(self._text_blocks))
        there = 1.0 - (1.0 - p * popular) ** users
        return np.asarray(np.prod([1.0 - one + one * text for one in there], axis=0))

    def _rare(self, p: float, users: int) -> NDArray[np.complex128] | float:
        """Returns the Fourier transform of the blocks of rare texts that a request holds; 1 without such."""
        rare = self._texts[p * self._texts * users < POPULAR]
        share = float(rare.sum())
        if not share or not p:
            return 1.0
        different = float(np.sum(1.0 - (1.0 - p * rare) ** users)) / (p * share * users)
        return np.asarray(1.0 - share + share * self._blocks_of(different * self._text_blocks))

    def _blocks_of(self, blocks: float) -> NDArray[np.complex128]:
        """Returns the Fourier transform of a number of blocks; between whole numbers, of both neighbours."""
        found, low = np.zeros(self._size), min(int(blocks), self._size - 2)
        found[low], found[low + 1] = 1.0 - (blocks - low), blocks - low
        return np.asarray(fft.rfft(found, self._size))

    def power(self, p: float, times: int, users: int) -> NDArray[np.complex128]:
        """Returns the Fourier transform of the distribution of the blocks that `times` users hold together,
        and of the rare text of one more request if there are more users.

        One user holds blocks with probability `p`. users: those of the class. Repeated squaring in place is
        faster than `**` here.
        """
        rare = self._rare(p, users)
        square = 1.0 - p + p * self._held * rare
        power, more = np.ones_like(square), times < users
        while times:
            if times & 1:
                power *= square
            times >>= 1
            if times:
                square *= square
        return power * rare if more else power


def _folded(held: Floats, size: int) -> Floats:
    """Shortens the distribution of a request's blocks to `size` cells. The last cell gets the sum of the
    tail, which stands for requests too large for the pool."""
    if len(held) <= size:
        return held
    return np.append(held[: size - 1], held[size - 1 :].sum())
