"""Routers, which choose the replica that gets a request. They know no time."""

from collections.abc import Callable, Sequence
from itertools import count

from loadtest.simulator.engine.requests import Request
from loadtest.simulator.engine.scheduler import Engine

Route = Callable[[Request, Sequence[Engine]], int]
"""A function that returns the index of the replica that gets a request."""


def round_robin() -> Route:
    """Returns a route that sends requests to the replicas in turn."""
    turn = count()
    return lambda _, engines: next(turn) % len(engines)


def least_loaded() -> Route:
    """Returns a route that sends a request to the replica with the fewest unfinished requests. Where several
    replicas have the fewest, they take turns."""
    turn = count()

    def route(_: Request, engines: Sequence[Engine]) -> int:
        return min(_rotation(next(turn), len(engines)), key=lambda index: engines[index].unfinished)

    return route


def _rotation(turn: int, replicas: int) -> list[int]:
    """Returns the indices of all replicas in cyclic order. Each turn begins one replica later."""
    return [(turn + offset) % replicas for offset in range(replicas)]


BALANCE_REQUESTS, BALANCE_FACTOR = 8, 1.5
"""Limits of `prefix_aware`: a replica gets no request, whatever it has cached, if its unfinished requests
exceed those of the least loaded replica by both this number and this factor."""


def prefix_aware() -> Route:
    """Returns a route that sends a request to the replica with the longest cached prefix of the prompt. If
    several replicas have the longest, the one with the fewest unfinished requests gets it; if these are equal
    too, the replicas take turns. A replica with too many unfinished requests gets none (BALANCE_REQUESTS)."""
    turn = count()

    def route(request: Request, engines: Sequence[Engine]) -> int:
        least = min(engine.unfinished for engine in engines)
        most = max(least + BALANCE_REQUESTS, BALANCE_FACTOR * least)

        def preference(index: int) -> tuple[int, int]:
            engine = engines[index]
            cached = engine.pool.hits(request.block_hashes, len(request.block_hashes))
            return cached if engine.unfinished <= most else -1, -engine.unfinished

        return max(_rotation(next(turn), len(engines)), key=preference)

    return route


ROUTERS = {"round-robin": round_robin, "least-loaded": least_loaded, "prefix-aware": prefix_aware}


def first_replica(_: Request, __: Sequence[Engine]) -> int:
    """Sends every request to the first replica."""
    return 0
