"""The part of a conversation's history that is still in a prefix cache of limited size (LRU eviction)."""

import math

import numpy as np
from scipy import special

from analysis.evidence.turns import Turns
from analysis.statistics.arrays import Floats, Ints

FOUND_LIMIT = 0.9  # share of the reusable tokens below which histories count as computed again
MOST_USERS = 1e5  # above, no number of users is named
PAUSES, HISTORIES = 24, 32  # number of quantiles that stand for each distribution
INSTANTS, MIN_TURNS, MAX_TURNS = 1000, 2000, 5000  # instants and turns on the time line of one user


class Eviction:
    """Computes the share of reusable tokens that N users still find in a prefix cache of C blocks (LRU).

    While one user pauses, the N - 1 other users touch D blocks in total. D is taken as normally distributed.
    After the pause, the user finds min(max(C - D, 0), h) blocks, where h is the number of blocks of the
    user's history. In an unlimited cache the share is 1.
    """

    def __init__(self, turns: Turns, *, response_s: float, rng: np.random.Generator, resample: bool) -> None:
        shared = turns.shared_prefix // turns.block_tokens
        line = _TimeLine(turns, response_s, rng, resample=resample)
        self._shared = shared
        self._pause_s = np.quantile(line.pause_s, (np.arange(PAUSES) + 0.5) / PAUSES)
        touched = line.touched(self._pause_s)
        self._mean, self._variance = touched.mean(axis=0), touched.var(axis=0)
        blocks = turns.reusable[line.row] / turns.block_tokens - shared
        history = blocks[line.again & ~np.isnan(blocks)]
        self._history = np.quantile(history, (np.arange(HISTORIES) + 0.5) / HISTORIES)
        self._again = float(line.again.mean())

    def found(self, users: Floats, blocks: float) -> Floats:
        """Returns the share of the reusable tokens that `users` users find in a cache of `blocks` blocks.

        `users` is an array of any shape and need not hold whole numbers. The share falls as users rise.
        """
        others = np.maximum(np.asarray(users, dtype=np.float64) - 1.0, 0.0)[..., None, None]
        mean, sd = others * self._mean[:, None], np.sqrt(others * self._variance[:, None]) + 1e-9
        room = blocks - self._shared
        hit = np.mean(_fits(room - mean, sd) - _fits(room - mean - self._history, sd), axis=(-2, -1))
        return np.asarray(
            (self._shared + self._again * hit) / (self._shared + self._again * self._history.mean())
        )

    def wall(self, blocks: float, limit: float = FOUND_LIMIT) -> float:
        """Returns the number of users, real-valued, at which the share found falls below `limit`.

        It is 1 if even one user finds less than that share, and infinite if it is more than MOST_USERS.
        """
        low, high = 1.0, 2.0
        while float(self.found(np.array(high), blocks)) > limit:
            if high > MOST_USERS:
                return math.inf
            low, high = high, 2.0 * high
        for _ in range(30):
            middle = (low + high) / 2
            if float(self.found(np.array(middle), blocks)) > limit:
                low = middle
            else:
                high = middle
        return low


def _fits(room: Floats, sd: Floats) -> Floats:
    """Returns E[max(room - X, 0)] for a normal X with mean 0 and standard deviation `sd`."""
    z = room / sd
    return np.asarray(room * special.ndtr(z) + sd * np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi))


class _TimeLine:
    """One user's conversations, one after the other, with the start and end of each answer and each pause."""

    def __init__(self, turns: Turns, response_s: float, rng: np.random.Generator, *, resample: bool) -> None:
        wanted = min(max(len(turns.prompt), MIN_TURNS), MAX_TURNS)
        chosen = _chosen(turns.weight, math.ceil(wanted / turns.length.mean()), rng, resample=resample)
        size = turns.length[chosen]
        ends = np.cumsum(size)
        position = np.arange(int(ends[-1])) - np.repeat(ends - size, size)
        self.row = np.repeat(turns.first[chosen], size) + position
        self.again = position > 0
        prompt, output = turns.prompt[self.row], turns.output[self.row]
        self._prompt, self._output = prompt, output
        self._block, self._shared = turns.block_tokens, turns.shared_prefix // turns.block_tokens
        self.pause_s = turns.pauses_s[_chosen(turns.pause_weight, len(self.row), rng, resample=resample)]
        self._response_s = response_s * output / output.mean()
        self._end_s = np.cumsum(self._response_s + self.pause_s) - self.pause_s
        self._start_s = self._end_s - self._response_s
        last = np.append(~self.again[1:], True)
        held = np.maximum((prompt + output - 1) // self._block - self._shared, 0)
        answers = held - np.maximum(prompt // self._block - self._shared, 0)
        # Blocks that the next turn does not use again stay until they are evicted.
        left = np.where(last, held, 0 if turns.answers_cached else answers)
        self._left = np.concatenate([[0], np.cumsum(left)])
        self._kept = held - left

    def touched(self, within_s: Floats) -> Floats:
        """Returns the number of blocks that one user touches in time windows, as an array (INSTANTS, k).

        Each row is an instant. Each column is a window that ends at this instant; its length is one of the k
        values of `within_s`. The blocks that the user holds at the instant, or has freed within the window,
        are counted.
        """
        total_s = float(self._end_s[-1])
        now_s = np.linspace(min(float(within_s.max()), total_s / 2), total_s, INSTANTS, endpoint=False)
        turn = np.maximum(np.searchsorted(self._start_s, now_s, side="right") - 1, 0)
        done = np.clip((now_s - self._start_s[turn]) / np.maximum(self._response_s[turn], 1e-12), 0.0, 1.0)
        active = self._end_s[turn] > now_s
        tokens = self._prompt[turn] + done * (self._output[turn] - 1)
        holds = np.where(active, np.maximum(np.ceil(tokens / self._block) - self._shared, 0), 0)
        ended = turn + ~active
        older = np.searchsorted(self._end_s, (now_s[:, None] - within_s).ravel()).reshape(-1, len(within_s))
        freed = np.maximum(self._left[ended][:, None] - self._left[older], 0)
        idle = np.where(~active[:, None] & (older <= turn[:, None]), self._kept[turn][:, None], 0)
        return np.asarray(holds[:, None] + freed + idle, dtype=np.float64)


def _chosen(weight: Floats, count: int, rng: np.random.Generator, *, resample: bool) -> Ints:
    """Returns `count` indices in random order, each in proportion to its weight, shape (count,).

    The method is systematic sampling. resample: whether to first multiply the weights by the counts of a
    bootstrap resample.
    """
    if resample:
        weight = weight * np.bincount(rng.integers(0, len(weight), len(weight)), minlength=len(weight))
    cumulative = np.cumsum(weight)
    places = (np.arange(count) + 0.5) / count * cumulative[-1]
    return rng.permutation(np.minimum(np.searchsorted(cumulative, places), len(weight) - 1))
