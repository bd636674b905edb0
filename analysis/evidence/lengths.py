"""Prompt and output lengths of finished requests, and the conversations that they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats, Ints


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LengthPairs:
    """Prompt and output tokens of finished requests, shape (n,).

    The requests of all levels are taken together, because load does not change their lengths.
    """

    prompt: Ints
    output: Ints
    conversation: Ints
    """Number of each request's conversation. Requests of one conversation are resampled together."""
    shared_prefix: int = 0
    """Tokens that every prompt begins with, in whole blocks. The prefix cache holds them once."""

    def __len__(self) -> int:
        return len(self.prompt)


def length_pairs_of(runs: Sequence[Run], *, block_tokens: int) -> LengthPairs:
    """Collects the lengths of every finished request whose usage the server sent."""
    prompt, output, conversation, cached = [], [], [], []
    before = 0
    for run in runs:
        rows = run.requests
        chats = conversation_ids(rows)
        known = rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1)
        prompt.append(rows.prompt_tokens[known].astype(np.int64))
        output.append(rows.output_tokens[known].astype(np.int64))
        conversation.append(chats[known] + before)
        cached.append(rows.cached_tokens[known & (rows.turn == 0)])
        before += int(chats.max(initial=-1)) + 1
    _, chat = np.unique(np.concatenate(conversation), return_inverse=True)
    return LengthPairs(
        prompt=np.concatenate(prompt),
        output=np.concatenate(output),
        conversation=chat.astype(np.int64),
        shared_prefix=_shared_prefix(np.concatenate(cached), block_tokens),
    )


def conversation_ids(rows: Requests) -> Ints:
    """Returns each request's conversation number, shape (n,). A user's turn 0 begins a new conversation."""
    order = np.lexsort((rows.start_unix_s, rows.user))
    begins = (rows.turn[order] == 0) | (np.diff(rows.user[order], prepend=-1) != 0)
    chat = np.empty(len(rows), dtype=np.int64)
    chat[order] = np.cumsum(begins) - 1
    return chat


def _shared_prefix(cached: Floats, block_tokens: int) -> int:
    """Returns how many tokens all prompts share as their prefix, in whole blocks.

    At least this many were found in the cache by nine in ten first turns. 0 with fewer than 20 first turns.
    """
    known = cached[~np.isnan(cached)]
    if len(known) < 20:
        return 0
    return int(np.quantile(known, 0.1)) // block_tokens * block_tokens
