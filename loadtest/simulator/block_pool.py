"""TODO."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice


class BlockPool:
    """The blocks that requests share. Blocks have no numbers: uncached free ones are a count and always
    go first; cached idle ones go in order of last use. A hash that two requests computed at the same time
    is cached once; the second's block counts as uncached (vLLM keeps both)."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._plain = blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references: dict[int, int] = {}

    @property
    def free(self) -> int:
        return self._plain + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks with a hash, used and idle."""
        return len(self._idle) + len(self._references)

    def take(self, count: int) -> None:
        """Raises KeyError when more are taken than are free: callers check first."""
        from_plain = min(count, self._plain)
        self._plain -= from_plain
        for _ in range(count - from_plain):
            self._idle.popitem(last=False)

    def give_back(self, count: int) -> None:
        """Frees blocks without a hash."""
        self._plain += count

    def hits(self, hashes: Sequence[int], limit: int) -> int:
        """Length of the longest cached prefix, in blocks, at most `limit`."""
        for index, block_hash in enumerate(islice(hashes, limit)):
            if block_hash not in self._references and block_hash not in self._idle:
                return index
        return min(len(hashes), limit)

    def idle_among(self, hashes: Iterable[int]) -> int:
        return sum(block_hash in self._idle for block_hash in hashes)

    def share(self, hashes: Iterable[int]) -> None:
        """One more reference to cached blocks."""
        for block_hash in hashes:
            if block_hash in self._references:
                self._references[block_hash] += 1
            else:
                del self._idle[block_hash]
                self._references[block_hash] = 1

    def register(self, block_hash: int) -> bool:
        """Gives a held block its hash. False when that hash is cached already."""
        if block_hash in self._references or block_hash in self._idle:
            return False
        self._references[block_hash] = 1
        return True

    def unshare(self, block_hash: int) -> None:
        """One reference less; the last one makes the block the youngest of the idle."""
        references = self._references[block_hash] - 1
        if references:
            self._references[block_hash] = references
        else:
            del self._references[block_hash]
            self._idle[block_hash] = None
