"""The pool of KV blocks that requests share, with its prefix cache. Knows no scheduler."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice


class BlockPool:
    """Counts free and used blocks without numbering them. Free blocks without a hash are taken first, then
    cached blocks that no request uses, the least recently used first. A hash that two requests computed at
    the same time is cached once, and the second block counts as uncached (vLLM keeps both)."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._plain = blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be taken, cached or not."""
        return self._plain + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks with a hash, in use or not."""
        return len(self._idle) + len(self._references)

    def take(self, count: int) -> None:
        """Takes `count` free blocks. Raises KeyError if there are fewer, which callers check first."""
        from_plain = min(count, self._plain)
        self._plain -= from_plain
        for _ in range(count - from_plain):
            self._idle.popitem(last=False)

    def give_back(self, count: int) -> None:
        """Frees `count` blocks without a hash."""
        self._plain += count

    def hits(self, hashes: Sequence[int], limit: int) -> int:
        """Returns the length in blocks of the longest cached prefix of `hashes`, at most `limit`."""
        for index, block_hash in enumerate(islice(hashes, limit)):
            if block_hash not in self._references and block_hash not in self._idle:
                return index
        return min(len(hashes), limit)

    def idle_among(self, hashes: Iterable[int]) -> int:
        """Returns how many blocks of `hashes` are cached and used by no request."""
        return sum(block_hash in self._idle for block_hash in hashes)

    def share(self, hashes: Iterable[int]) -> None:
        """Adds one reference to each of these cached blocks."""
        for block_hash in hashes:
            if block_hash in self._references:
                self._references[block_hash] += 1
            else:
                del self._idle[block_hash]
                self._references[block_hash] = 1

    def register(self, block_hash: int) -> bool:
        """Caches a block in use under its hash. Returns False if that hash is cached already."""
        if block_hash in self._references or block_hash in self._idle:
            return False
        self._references[block_hash] = 1
        return True

    def unshare(self, block_hash: int) -> None:
        """Removes one reference from a cached block. Without references it is free, and the last of the free
        ones to be taken."""
        references = self._references[block_hash] - 1
        if references:
            self._references[block_hash] = references
        else:
            del self._references[block_hash]
            self._idle[block_hash] = None
