"""TODO."""

from collections.abc import Callable, Sequence
from itertools import count

from loadtest.simulator.engine import Engine
from loadtest.simulator.requests import Request

Route = Callable[[Request, Sequence[Engine]], int]
"""Which replica gets a request, by index."""


def round_robin() -> Route:
    """Each request to the next replica."""
    turn = count()
    return lambda _, engines: next(turn) % len(engines)


def least_loaded() -> Route:
    """To the replica with the fewest unfinished requests; equals take turns."""
    turn = count()

    def route(_: Request, engines: Sequence[Engine]) -> int:
        return min(_rotation(next(turn), len(engines)), key=lambda place: engines[place].unfinished)

    return route


def _rotation(turn: int, replicas: int) -> list[int]:
    """All places, another one first each time."""
    return [(turn + place) % replicas for place in range(replicas)]


BALANCE_REQUESTS, BALANCE_FACTOR = 8, 1.5
"""A replica that is ahead of the least loaded by both is passed over, whatever it has cached."""


def prefix_aware() -> Route:
    """To the replica that has most of the prompt cached; of equals to the least loaded, by turns."""
    turn = count()

    def route(request: Request, engines: Sequence[Engine]) -> int:
        least = min(engine.unfinished for engine in engines)
        most = max(least + BALANCE_REQUESTS, BALANCE_FACTOR * least)

        def worth(place: int) -> tuple[int, int]:
            engine = engines[place]
            cached = engine.pool.hits(request.block_hashes, len(request.block_hashes))
            return cached if engine.unfinished <= most else -1, -engine.unfinished

        return max(_rotation(next(turn), len(engines)), key=worth)

    return route


ROUTERS = {"round-robin": round_robin, "least-loaded": least_loaded, "prefix-aware": prefix_aware}


def first_replica(_: Request, __: Sequence[Engine]) -> int:
    """To the first replica: where there is no other."""
    return 0
