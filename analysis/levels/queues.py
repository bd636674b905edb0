"""Queues in the server's scrapes: whether requests waited for KV blocks or for `max_num_seqs` slots."""

import math

import numpy as np

from analysis.levels.context import Context
from analysis.levels.window import known_mean
from analysis.reading.columns import ServerSamples
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import MissShare, Window, design_effect

MIN_QUEUES = 8  # scrapes with a queue and room in the pool, at least
ROOM = 0.9  # KV usage below which no request waits for blocks, where lengths are unknown
AT_TOP, NEAR_TOP, ALWAYS = 0.1, 0.9, 0.8  # shares of scrapes; `python -m benchmarks coverage` tests them


def blocked_share(
    server: ServerSamples, scrapes: Bools, context: Context, window: Window, max_num_seqs: int | None
) -> MissShare | None:
    """Returns the share of scrapes in which a request waited for KV blocks; None where scrapes do not tell.

    A queue counts only while the free blocks might not hold the largest prompt, and only if no `max_num_seqs`
    was detected in the level.
    """
    usage = server.kv_cache_usage[scrapes]
    waiting = server.waiting_capacity[scrapes]
    if np.isnan(waiting).all():
        waiting = server.waiting[scrapes]
    known = ~(np.isnan(waiting) | np.isnan(usage))
    if not known.any():
        return None
    room = _room(context, server.running[scrapes])
    blocked = (waiting[known] > 0) & (usage[known] >= room) & (max_num_seqs is None)
    return _share_of_scrapes(blocked, server.unix_s[scrapes][known], window)


def _share_of_scrapes(events: Bools, at_unix_s: Floats, window: Window) -> MissShare:
    """Returns a share of scrapes. At most one scrape in each mean request duration counts as independent."""
    effect = max(
        design_effect(events.astype(np.float64), at_unix_s, window),
        len(events) * window.request_duration_s / window.length_s,
    )
    return MissShare(misses=int(events.sum()), n=len(events), effect=float(effect))


def _room(context: Context, running: Floats) -> float:
    """Returns the pool usage from which on a waiting request may be waiting for blocks.

    The largest prompt may lack the blocks that are free then. Besides, blocks of requests that have just
    ended are free in the gauge before the next requests take them.
    """
    if context.pool is None:
        return ROOM
    unseen = context.largest_prompt_blocks + _endings(context, running) * context.mean_end_blocks
    return 1.0 - unseen / context.pool.blocks


def _queues_with_room(server: ServerSamples, scrapes: Bools, context: Context) -> Bools:
    """Returns the scrapes in which a request waited although the pool had room, shape (scrapes,)."""
    room = min(_room(context, server.running[scrapes]), ROOM)
    return (server.waiting[scrapes] > 0) & ~(server.kv_cache_usage[scrapes] >= room)


def queue_share(server: ServerSamples, scrapes: Bools, context: Context, window: Window) -> MissShare:
    """Returns the share of scrapes in which a request waited although the pool had room."""
    known = ~np.isnan(server.waiting[scrapes])
    queue = _queues_with_room(server, scrapes, context)
    return _share_of_scrapes(queue[known], server.unix_s[scrapes][known], window)


def detected_max_num_seqs(
    server: ServerSamples, scrapes: Bools, context: Context, users: int, top: int | None
) -> int | None:
    """Returns `top` as max_num_seqs if running stands at it in nearly all queues with room; else None.

    Running may be lower than `top` by the requests that end in one step, because the gauge is read after
    them. A queue for blocks or for the step's token budget shows no such edge, unless all users or all but
    one run. Then `top` counts only if the queue is hardly ever empty.
    """
    queue = _queues_with_room(server, scrapes, context)
    if top is None or (users - top <= 1 and queue.mean() < ALWAYS):
        return None
    running = server.running[scrapes][queue]
    below = max(1.0, 0.02 * top, _endings(context, running))
    return top if float(np.mean(running >= top - below)) >= NEAR_TOP else None


def most_running_with_queue(server: ServerSamples, scrapes: Bools, context: Context) -> int | None:
    """Returns the most requests that ran while others waited. None unless queues with room fill more than
    QUEUE_LIMIT of the scrapes, and one in ten of those scrapes shows that number."""
    running, waiting = server.running[scrapes], server.waiting[scrapes]
    queue = _queues_with_room(server, scrapes, context)
    if not len(running) or queue.mean() <= QUEUE_LIMIT or queue.sum() < MIN_QUEUES:
        return None
    top = float(np.nanmax(running[waiting > 0]))
    return round(top) if float(np.mean(running[queue] == top)) >= AT_TOP else None


def _endings(context: Context, running: Floats) -> float:
    """Returns how many requests one step may end: a Poisson mean plus two standard deviations."""
    mean = known_mean(running) / context.mean_output
    return mean + 2.0 * math.sqrt(mean)


QUEUE_LIMIT = 0.1  # share of the time with a queue for slots at which the wall lies
