"""The pool of KV-cache blocks that requests share, with its prefix cache. Knows no scheduler."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice


class BlockPool:
    """Counts free and used blocks without numbering them. A cached block has a hash; it is free while no
    request uses it.

    Free blocks without a hash are taken first. Free cached blocks are taken next, the least recently used
    first. If two requests compute the same hash at the same time, only one block is cached and the other
    counts as uncached (vLLM caches both).
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._plain = blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Number of free blocks, cached or not."""
        return self._plain + len(self._idle)

    @property
    def cached(self) -> int:
        """Number of blocks with a hash, in use or free."""
        return len(self._idle) + len(self._references)

    def take(self, count: int) -> None:
        """Takes `count` free blocks. Callers check first that there are enough; otherwise raises KeyError."""
        from_plain = min(count, self._plain)
        self._plain -= from_plain
        evict = self._idle.popitem
        for _ in range(count - from_plain):
            evict(last=False)

    def give_back(self, count: int) -> None:
        """Frees `count` blocks without a hash."""
        self._plain += count

    def hits(self, hashes: Sequence[int], limit: int) -> int:
        """Returns how many cached blocks `hashes` begins with. Stops counting at the first block that is not
        cached, or at `limit`."""
        references, idle = self._references, self._idle
        for index, block_hash in enumerate(islice(hashes, limit)):
            if block_hash not in references and block_hash not in idle:
                return index
        return min(len(hashes), limit)

    def idle_among(self, hashes: Iterable[int]) -> int:
        """Returns how many of the blocks with these hashes are cached and used by no request."""
        return sum(map(self._idle.__contains__, hashes))

    def share(self, hashes: Iterable[int]) -> None:
        """Adds one reference to each of the cached blocks with these hashes."""
        references, idle = self._references, self._idle
        for block_hash in hashes:
            if block_hash in references:
                references[block_hash] += 1
            else:
                del idle[block_hash]
                references[block_hash] = 1

    def register(self, hashes: Iterable[int]) -> list[int]:
        """Caches blocks in use under their hashes. Returns the positions of those that are cached already."""
        references, idle = self._references, self._idle
        duplicates = []
        for position, block_hash in enumerate(hashes):
            if block_hash in references or block_hash in idle:
                duplicates.append(position)
            else:
                references[block_hash] = 1
        return duplicates

    def unshare(self, hashes: Iterable[int]) -> None:
        """Removes one reference from each of the cached blocks with these hashes.

        A block without references becomes free; all other free blocks are taken before it.
        """
        references, idle = self._references, self._idle
        for block_hash in hashes:
            left = references.pop(block_hash) - 1
            if left:
                references[block_hash] = left
            else:
                idle[block_hash] = None
