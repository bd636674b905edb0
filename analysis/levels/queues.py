"""Queues in the server's scrapes: whether requests waited for KV blocks or for `max_num_seqs` slots."""

import math

import numpy as np

from analysis.levels.context import Context
from analysis.levels.window import known_mean
from analysis.reading.columns import ServerSamples
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import MissShare, Window, design_effect

MIN_QUEUES = 8  # scrapes
ROOM = 0.9  # of the pool in use: where lengths are not known, a queue below that is not for blocks
AT_TOP, NEAR_TOP, ALWAYS = 0.1, 0.9, 0.8  # shares of scrapes: `python -m benchmarks coverage` names the walls


def blocked_share(
    server: ServerSamples, scrapes: Bools, context: Context, window: Window, max_num_seqs: int | None
) -> MissShare | None:
    """Scrapes in which a request waited for KV blocks. A queue while any prompt would fit is not that."""
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
    """Share of scrapes; scrapes that are a request duration apart are independent at best."""
    effect = max(
        design_effect(events.astype(np.float64), at_unix_s, window),
        len(events) * window.request_duration_s / window.length_s,
    )
    return MissShare(misses=int(events.sum()), n=len(events), effect=float(effect))


def _room(context: Context, running: Floats) -> float:
    """Pool usage from which on a waiting request may wait for blocks. The largest prompt may lack them, and
    the gauge has already lost the blocks of requests that ended, before the next are admitted."""
    if context.pool is None:
        return ROOM
    unseen = context.largest_prompt_blocks + _endings(context, running) * context.mean_end_blocks
    return 1.0 - unseen / context.pool.blocks


def _queues_with_room(server: ServerSamples, scrapes: Bools, context: Context) -> Bools:
    """Scrapes in which a request waited, and not for blocks, shape (scrapes,)."""
    room = min(_room(context, server.running[scrapes]), ROOM)
    return (server.waiting[scrapes] > 0) & ~(server.kv_cache_usage[scrapes] >= room)


def queue_share(server: ServerSamples, scrapes: Bools, context: Context, window: Window) -> MissShare:
    """Scrapes in which a request waited while the pool had room."""
    known = ~np.isnan(server.waiting[scrapes])
    queue = _queues_with_room(server, scrapes, context)
    return _share_of_scrapes(queue[known], server.unix_s[scrapes][known], window)


def detected_max_num_seqs(
    server: ServerSamples, scrapes: Bools, context: Context, users: int, top: int | None
) -> int | None:
    """max_num_seqs, where running stands at a maximum with a queue for over 10 % of the time and room in the
    pool, or as far below it as the requests that end in a step explain: the gauge is read after them.

    A queue for blocks or for the step's token budget has no such edge; but with all but one of few users
    running, it looks as if it had: then the queue must hardly ever be empty.
    """
    queue = _queues_with_room(server, scrapes, context)
    if top is None or (users - top <= 1 and queue.mean() < ALWAYS):
        return None
    running = server.running[scrapes][queue]
    below = max(1.0, 0.02 * top, _endings(context, running))
    return top if float(np.mean(running >= top - below)) >= NEAR_TOP else None


def most_running_with_queue(server: ServerSamples, scrapes: Bools, context: Context) -> int | None:
    """Most requests that ran while others waited and the pool had room; None unless one in ten such scrapes
    shows so many."""
    running, waiting = server.running[scrapes], server.waiting[scrapes]
    queue = _queues_with_room(server, scrapes, context)
    if not len(running) or queue.mean() <= QUEUE_LIMIT or queue.sum() < MIN_QUEUES:
        return None
    top = float(np.nanmax(running[waiting > 0]))
    return round(top) if float(np.mean(running[queue] == top)) >= AT_TOP else None


def _endings(context: Context, running: Floats) -> float:
    """Requests that one step may end, with two standard deviations of a Poisson distribution."""
    mean = known_mean(running) / context.mean_output
    return mean + 2.0 * math.sqrt(mean)


QUEUE_LIMIT = 0.1  # share of time with a queue for slots that is a wall
