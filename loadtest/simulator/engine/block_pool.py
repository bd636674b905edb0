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
        for _ in range(count - from_plain):
            self._idle.popitem(last=False)

    def give_back(self, count: int) -> None:
        """Frees `count` blocks without a hash."""
        self._plain += count

    def hits(self, hashes: Sequence[int], limit: int) -> int:
        """Returns how many cached blocks `hashes` begins with. Stops counting at the first block that is not
        cached, or at `limit`."""
        for index, block_hash in enumerate(islice(hashes, limit)):
            if block_hash not in self._references and block_hash not in self._idle:
                return index
        return min(len(hashes), limit)

    def idle_among(self, hashes: Iterable[int]) -> int:
        """Returns how many of the blocks with these hashes are cached and used by no request."""
        return sum(block_hash in self._idle for block_hash in hashes)

    def share(self, hashes: Iterable[int]) -> None:
        """Adds one reference to each of the cached blocks with these hashes."""
        for block_hash in hashes:
            if block_hash in self._references:
                self._references[block_hash] += 1
            else:
                del self._idle[block_hash]
                self._references[block_hash] = 1

    def register(self, block_hash: int) -> bool:
        """Caches a block in use under its hash. Returns False if the hash is cached already."""
        if block_hash in self._references or block_hash in self._idle:
            return False
        self._references[block_hash] = 1
        return True

    def unshare(self, block_hash: int) -> None:
        """Removes one reference from a cached block. A block without references becomes free; all other free
        blocks are taken before it."""
        references = self._references[block_hash] - 1
        if references:
            self._references[block_hash] = references
        else:
            del self._references[block_hash]
            self._idle[block_hash] = None
