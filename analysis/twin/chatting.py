"""Reads how people chat from the rows of a load test: conversations and pauses.

The end of a run cuts off some conversations and pauses, mostly long ones. Without them, the rest would be too
short on average. Therefore, the weight of each one that was cut off is moved to longer ones
(`analysis.evidence.lifetimes`).
"""

from collections.abc import Sequence

import numpy as np

from analysis.cli import RefusedError
from analysis.evidence.evidence import Evidence
from analysis.evidence.lifetimes import censoring_weights, conversation_turns, measured_pauses
from analysis.evidence.turns import answers_cached_of
from analysis.levels.level import Level
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, ChattingClass, TurnTokens, mixed
from analysis.virtual.user_classes import chatting_class, run_objectives
from loadtest.record import UserClass
from loadtest.workload.classes import text_popularity

_Conversation = tuple[TurnTokens, ...]


def chatting_of(
    evidence: Evidence, levels: Sequence[Level], *, left_out: Sequence[Level] = ()
) -> ChatBehaviour:
    """Describes how users chat: conversations, shared prefix and pauses; those of each class in a mix.

    Conversations come from all requests of the runs, except those that were sent during the levels of
    `left_out`. Pauses come only from the time windows of `levels`. The shared prompt prefix, and whether
    answers are cached, are facts of the workload and come from all requests; those of a class come from the
    workload file. Raises RefusedError if no conversation is left.
    """
    assert evidence.pairs is not None
    classes = evidence.runs[-1].info.classes
    if classes:
        return mixed([_chatting_class(one, evidence, levels, left_out) for one in classes])
    conversations, _ = _conversations(evidence.runs, left_out)
    return ChatBehaviour(
        conversations=conversations,
        pauses_s=_pauses_s(evidence.runs, levels),
        shared_prefix_tokens=evidence.pairs.shared_prefix,
        answers_cached=answers_cached_of(evidence.runs),
    )


def _chatting_class(
    user_class: UserClass, evidence: Evidence, levels: Sequence[Level], left_out: Sequence[Level]
) -> ChattingClass:
    name, runs = user_class.name, evidence.runs
    conversations, tool_follows = _conversations(runs, left_out, name)
    with_tools = any(map(any, tool_follows))
    return chatting_class(
        name,
        user_class.weight,
        slo=user_class.objectives.over(evidence.slo),
        run_slo=run_objectives(runs[-1].info.classes or [], evidence.slo),
        chatting=ChatBehaviour(
            conversations=conversations,
            pauses_s=_pauses_s(runs, levels, name, of_tools=False),
            shared_prefix_tokens=user_class.shared_tokens,
            shared_texts=text_popularity(user_class),
            tool_follows=tool_follows if with_tools else None,
            tool_pauses_s=_pauses_s(runs, levels, name, of_tools=True) if with_tools else None,
            answers_cached=answers_cached_of(runs),
        ),
    )


def _conversations(
    runs: Sequence[Run], left_out: Sequence[Level], user_class: str | None = None
) -> tuple[list[_Conversation], list[tuple[bool, ...]]]:
    """Returns the conversations, and for each of their requests whether a tool works after it.

    user_class: if given, only conversations of this class.
    """
    found: list[_Conversation] = []
    follows: list[tuple[bool, ...]] = []
    ended: list[Bools] = []
    for run in runs:
        rows = run.requests
        spans = [_span(run, level) for level in left_out if level.run_id == run.info.run_id]
        order, length, whole = _turns_outside(rows, spans)
        tokens = zip(rows.prompt_tokens[order].tolist(), rows.output_tokens[order].tolist(), strict=True)
        turns = [(int(prompt), int(output)) for prompt, output in tokens]
        step = [*rows.step[order].tolist(), 0]
        ends = np.cumsum(length)
        mine = np.full(len(ends), True)
        if user_class is not None:
            mine = rows.of_class(user_class)[order][ends - 1]
        for end, count in zip(ends[mine].tolist(), length[mine].tolist(), strict=True):
            found.append(tuple(turns[end - count : end]))
            follows.append((*(later > 0 for later in step[end - count + 1 : end]), False))
        ended.append(whole[mine])
    if not found:
        of_class = f" of class '{user_class}'" if user_class is not None else ""
        raise RefusedError(
            f"No finished request{of_class} is left to tell the lengths of prompts and answers."
        )
    if max(map(len, found)) == 1:
        return found, follows  # conversations of one turn are never cut off
    turns_of_each = np.array([len(turns) for turns in found], dtype=np.float64)
    chosen = _equal_weights(censoring_weights(turns_of_each, np.concatenate(ended))).tolist()
    return [found[index] for index in chosen], [follows[index] for index in chosen]


def _span(run: Run, level: Level) -> tuple[float, float]:
    """Returns begin and end of a level, its settling time included, Unix seconds."""
    window = level.window
    middle = (window.begin_unix_s + window.end_unix_s) / 2
    inside = [span[:2] for span in run.info.schedule if span[0] <= middle < span[1]]
    return inside[0] if inside else (window.begin_unix_s, window.end_unix_s)


def _turns_outside(rows: Requests, spans: Sequence[tuple[float, float]]) -> tuple[Ints, Ints, Bools]:
    """Returns the arrays of `conversation_turns` for the requests that were sent outside of some spans.

    A conversation is cut off before its first request inside a span.
    """
    order, length, whole = conversation_turns(rows)
    chat = np.repeat(np.arange(len(length)), length)
    sent = rows.start_unix_s[order]
    inside = np.zeros(len(order), dtype=np.int64)
    for begin, end in spans:
        inside |= (begin <= sent) & (sent < end)
    seen = np.concatenate([[0], np.cumsum(inside)])
    kept = seen[1:] == seen[np.cumsum(length) - length][chat]
    left = np.bincount(chat[kept], minlength=len(length))
    return order[kept], left[left > 0], (whole & (left == length))[left > 0]


def _pauses_s(
    runs: Sequence[Run],
    levels: Sequence[Level],
    user_class: str | None = None,
    *,
    of_tools: bool | None = None,
) -> Floats:
    found = [
        measured_pauses(run, level.window, user_class=user_class, of_tools=of_tools)
        for run in runs
        for level in levels
        if level.run_id == run.info.run_id
    ]
    pauses_s, ended = np.concatenate(found, axis=1) if found else np.empty((2, 0))
    if not ended.any():
        return np.array([CLIENT_TURNAROUND_S])
    return np.asarray(pauses_s[_equal_weights(censoring_weights(pauses_s, ended > 0))])


def _equal_weights(weight: Floats) -> Ints:
    """Resamples the positions 0..n-1 in proportion to their weights; returns n positions, shape (n,).

    A position with a large weight is repeated, and one with a small weight may be missing. With equal
    weights, each position occurs once.
    """
    cumulative = np.cumsum(weight)
    at = (np.arange(len(weight)) + 0.5) / len(weight) * cumulative[-1]
    return np.asarray(np.minimum(np.searchsorted(cumulative, at), len(weight) - 1))
