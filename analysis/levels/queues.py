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
NEAR_TOP, ALWAYS = 0.9, 0.8  # shares of scrapes; `python -m benchmarks coverage` tests them


def blocked_share(
    server: ServerSamples, scrapes: Bools, context: Context, window: Window, max_num_seqs: int | None
) -> MissShare | None:
    """Returns the share of scrapes in which a request waited for KV blocks; None where scrapes do not tell.

    A waiting request counts only while the KV cache is so full that the largest prompt might not fit. If
    `max_num_seqs` was detected in the level, no request counts.
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
    """Returns the share of scrapes with an event, together with its design effect.

    The effect says how many scrapes count as one independent scrape, because near scrapes are alike. At most
    one scrape in each mean request duration counts as independent.
    """
    effect = max(
        design_effect(events.astype(np.float64), at_unix_s, window),
        len(events) * window.request_duration_s / window.length_s,
    )
    return MissShare(misses=int(events.sum()), n=len(events), effect=float(effect))


def _room(context: Context, running: Floats) -> float:
    """Returns the KV-cache usage from which on a waiting request may be waiting for blocks.

    Below it, the free blocks are enough for the largest prompt. Blocks of requests that have just ended are
    not counted as free, because the next requests will take them. ROOM where the pool's size or the number of
    running requests is unknown.
    """
    if context.pool is None or np.isnan(running).all():
        return ROOM
    unseen = context.largest_prompt_blocks + _endings(context, running) * context.mean_end_blocks
    return 1.0 - unseen / context.pool.blocks


def _queues_with_room(server: ServerSamples, scrapes: Bools, context: Context) -> Bools:
    """Returns for each scrape whether a request waited although the KV cache had room. Shape (scrapes,)."""
    room = min(_room(context, server.running[scrapes]), ROOM)
    return (server.waiting[scrapes] > 0) & ~(server.kv_cache_usage[scrapes] >= room)


def queue_share(server: ServerSamples, scrapes: Bools, context: Context, window: Window) -> MissShare:
    """Returns the share of scrapes in which a request waited although the KV-cache pool had room."""
    known = ~np.isnan(server.waiting[scrapes])
    queue = _queues_with_room(server, scrapes, context)
    return _share_of_scrapes(queue[known], server.unix_s[scrapes][known], window)


def detected_max_num_seqs(server: ServerSamples, scrapes: Bools, context: Context, users: int) -> int | None:
    """Returns the number of slots, if requests wait for slots in this level; else None.

    A scrape has a queue if requests wait although the KV-cache pool has room. More than QUEUE_LIMIT of the
    scrapes must have one. In nearly all of these, the number of running requests must be the number of slots
    or slightly less: the gauge is read after requests have ended in a step.

    Where the number of slots is not known (`context`), it is taken as the most that run while others wait.
    If this is the number of users, or one less, other queues look the same; and users who do not think always
    wait for slots that are fewer than they are. In both cases, a share ALWAYS of all scrapes must have a
    queue.
    """
    running, waiting = server.running[scrapes], server.waiting[scrapes]
    queue = _queues_with_room(server, scrapes, context)
    if not len(running) or queue.mean() <= QUEUE_LIMIT or queue.sum() < MIN_QUEUES:
        return None
    top = context.max_num_seqs
    if top is None:
        top = round(float(np.nanmax(running[waiting > 0])))
        if (users - top <= 1 or not context.thinks) and queue.mean() < ALWAYS:
            return None
    below = max(1.0, 0.02 * top, _endings(context, running))
    return top if float(np.mean(running[queue] >= top - below)) >= NEAR_TOP else None


def _endings(context: Context, running: Floats) -> float:
    """Returns how many requests may end in one step, at most.

    This is the mean plus three standard deviations of a Poisson distribution, rounded up: a scrape meets long
    steps more often, and these follow steps in which many requests ended.
    """
    mean = known_mean(running) / context.mean_output
    return math.ceil(mean + 3.0 * math.sqrt(mean))


QUEUE_LIMIT = 0.1  # share of the time with a queue for slots at which the wall lies
