"""Turns of conversations and what of them an unlimited cache would hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.lifetimes import (
    censoring_weights,
    conversation_turns,
    known_lengths,
    measured_pauses,
)
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats, Ints

MIN_ANSWERS_FOUND = 0.05  # share of turns that find the answer before them, if answers are cached


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turns:
    """Finished requests of known lengths, sorted by conversation and turn. Shape (n,)."""

    prompt: Ints
    """Prompt tokens, the history included."""
    output: Ints
    first: Ints
    """Index of each conversation's first turn, shape (c,)."""
    length: Ints
    """Number of turns of each conversation, shape (c,)."""
    weight: Floats
    """Weight of each conversation, shape (c,). The weight of those that were cut off goes to longer ones."""
    reusable: Floats
    """Prompt tokens that an unlimited cache would hold; nan where the turn before is not known."""
    pauses_s: Floats
    """Seconds from an answer's end to the same user's next request, shape (m,)."""
    pause_weight: Floats
    """Weight of each pause, shape (m,). The weight of those that were cut off goes to longer ones."""
    block_tokens: int
    shared_prefix: int
    answers_cached: bool
    """Whether the next turn finds this turn's answer in the cache: it is sent back as the same tokens."""


def turns_of(runs: Sequence[Run], *, block_tokens: int, shared_prefix: int) -> Turns | None:
    """Collects the turns of all requests whose usage the server sent.

    None where no conversation has two turns, where no pause ended, or where only a shared prefix is reusable.
    """
    if not any((run.requests.turn > 0).any() for run in runs):
        return None
    kept = answers_cached_of(runs)
    parts = [_of_run(run.requests, kept, block_tokens, shared_prefix) for run in runs]
    prompt, output, reusable = np.concatenate([part for part, _, _ in parts], axis=1)
    length = np.concatenate([length for _, length, _ in parts])
    whole = np.concatenate([whole for _, _, whole in parts])
    pauses_s, seen = np.concatenate([measured_pauses(run) for run in runs], axis=1)
    if not seen.any() or not np.nanmax(reusable, initial=0.0) > shared_prefix:
        return None
    return Turns(
        prompt=prompt.astype(np.int64),
        output=output.astype(np.int64),
        first=np.cumsum(length) - length,
        length=length,
        weight=censoring_weights(length.astype(np.float64), whole),
        reusable=reusable,
        pauses_s=pauses_s,
        pause_weight=censoring_weights(pauses_s, seen > 0),
        block_tokens=block_tokens,
        shared_prefix=shared_prefix,
        answers_cached=kept,
    )


def turn_before(rows: Requests) -> Ints:
    """Returns the row of each request's previous turn in its conversation, else -1. Shape (n,)."""
    order = np.lexsort((rows.start_unix_s, rows.user))
    follows = np.diff(rows.user[order]) == 0
    follows &= rows.turn[order][1:] == rows.turn[order][:-1] + 1
    before = np.full(len(rows), -1, dtype=np.int64)
    before[order[1:][follows]] = order[:-1][follows]
    return before


def _of_run(
    rows: Requests, answers_cached: bool, block_tokens: int, shared_prefix: int
) -> tuple[Floats, Ints, Bools]:
    """Returns three arrays about requests of known lengths and their conversations.

    - Prompt, output and reusable tokens of the requests, sorted by conversation and turn; shape (3, n).
    - The number of turns of each conversation, shape (c,).
    - Whether each conversation ended before the run did, shape (c,).
    """
    reusable = reusable_tokens(rows, answers_cached, block_tokens, shared_prefix)
    order, length, whole = conversation_turns(rows)
    return np.stack([rows.prompt_tokens, rows.output_tokens, reusable])[:, order], length, whole


def answers_cached_of(runs: Sequence[Run]) -> bool:
    """Returns whether later turns find earlier answers in the cache.

    Where the server reports no cached tokens, this is assumed if most prompts are long enough to contain the
    previous prompt and its answer.
    """
    found, whole = [], []
    for run in runs:
        rows, before = run.requests, turn_before(run.requests)
        now = np.flatnonzero((before >= 0) & known_lengths(rows) & known_lengths(rows)[before])
        prompt, output = rows.prompt_tokens[before[now]], rows.output_tokens[before[now]]
        told = rows.cached_tokens[now] > 0
        found.append((rows.cached_tokens[now] > prompt + output / 2)[told])
        whole.append(rows.prompt_tokens[now] >= prompt + output)
    seen = np.concatenate(found)
    if len(seen):
        return bool(seen.mean() > MIN_ANSWERS_FOUND)
    return bool(np.mean(np.concatenate(whole) if any(map(len, whole)) else [True]) > 0.5)


def reusable_tokens(
    rows: Requests, answers_cached: bool, block_tokens: int, shared_prefix: int | Floats
) -> Floats:
    """Returns how many tokens of each prompt an unlimited cache would hold, in whole blocks. Shape (n,).

    nan where unknown. An answer's last token is never stored. A prompt's last token is never reused.
    shared_prefix: length of the text that all prompts begin with, or for each one, shape (n,).
    """
    before = turn_before(rows)
    kept = rows.prompt_tokens + (rows.output_tokens - 1.0 if answers_cached else 0.0)
    history = np.where(before >= 0, np.where(known_lengths(rows), kept, np.nan)[before], 0.0)
    history[(rows.turn > 0) & (before < 0)] = np.nan
    most = np.minimum(np.maximum(history, shared_prefix), rows.prompt_tokens - 1.0)
    return np.asarray(np.where(known_lengths(rows), most // block_tokens * block_tokens, np.nan))
