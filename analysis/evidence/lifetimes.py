"""Conversations and pauses that the end of a run may have cut off, and weights that correct for that.

What was cut off is mostly long. Left out, or counted as it is, it would make the rest too short.
"""

import math

import numpy as np

from analysis.evidence.lengths import conversation_ids
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.statistics.samples import Window


def known_lengths(rows: Requests) -> Bools:
    """Returns whether each request finished with known prompt and output lengths, shape (n,)."""
    return rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1)


def conversation_turns(rows: Requests) -> tuple[Ints, Ints, Bools]:
    """Returns three arrays about requests of known lengths and their conversations.

    - The rows of the requests, sorted by conversation and turn; shape (n,).
    - The number of turns of each conversation, shape (c,).
    - Whether each conversation came to its own end, shape (c,). The end of the run or a failed
      turn cut off the others.
    """
    chat = conversation_ids(rows)
    newest = np.zeros(int(rows.user.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(newest, rows.user, chat)
    known = np.flatnonzero(known_lengths(rows))
    order = known[np.lexsort((rows.start_unix_s[known], chat[known]))]
    _, begins, length = np.unique(chat[order], return_index=True, return_counts=True)
    last = order[begins]
    broken = np.isin(chat[last], chat[~rows.ok])
    return order, length.astype(np.int64), (chat[last] < newest[rows.user[last]]) & ~broken


def measured_pauses(
    run: Run, window: Window | None = None, *, user_class: str | None = None, of_tools: bool | None = None
) -> Floats:
    """Returns the users' pauses between requests, as an array of shape (2, m).

    Its first row has the seconds. Its second row has 1 if the pause ended, or 0 if the level's end cut it
    off. The pause of a user whose request has failed, which comes before the usual one, is left out.

    window: if given, only pauses that began inside it are returned. user_class: if given, only those of this
    class. of_tools: True for pauses in which a tool worked, False for those of people; None for all. A pause
    that was cut off counts as a person's, because tools are mostly fast.
    """
    rows = run.requests
    order = np.lexsort((rows.start_unix_s, rows.user))
    ended = rows.end_unix_s[order]
    begun = np.append((rows.start_unix_s + np.nan_to_num(rows.sent_s))[order][1:], np.nan)
    same = np.append(np.diff(rows.user[order]) == 0, False)
    spans = np.array([level[:2] for level in run.info.schedule] + [(math.inf, math.inf)])
    begin, stop = spans[np.searchsorted(spans[:-1, 1], ended)].T
    pause = np.where(same, begun, stop) - ended - np.nan_to_num(rows.pause_s[order])
    kept = same | ((begin <= ended) & (pause < math.inf))
    if user_class is not None:
        kept &= rows.of_class(user_class)[order]
    if of_tools is not None:
        kept &= (same & np.append(rows.step[order][1:] > 0, False)) == of_tools
    if window is not None:
        kept &= (window.begin_unix_s <= ended) & (ended < window.end_unix_s)
    return np.stack([np.maximum(pause, 0.0), same])[:, kept]


def censoring_weights(values: Floats, complete: Bools) -> Floats:
    """Returns weights for durations, some of which were cut off. Their sum is 1. Shape (n,).

    If a duration was cut off, its weight goes to all larger durations. The largest durations keep their
    weight even if they were cut off: they stand for all that are larger, in equal parts. This is the estimate
    of E. Kaplan and P. Meier, "Nonparametric estimation from incomplete observations", 1958.

    values: the durations, shape (n,). complete: False where a duration was cut off, shape (n,).
    """
    order = np.lexsort((~complete, values))
    weight = np.zeros(len(values))
    at_risk = len(values) - np.arange(len(values))
    share = np.cumprod(np.where(complete[order], 1.0 - 1.0 / at_risk, 1.0))
    weight[order] = np.where(complete[order], np.append(1.0, share[:-1]) / at_risk, 0.0)
    largest = ~complete & (values == values.max(initial=0.0))
    if largest.any():
        weight[largest] = (1.0 - weight.sum()) / largest.sum()
    return weight
