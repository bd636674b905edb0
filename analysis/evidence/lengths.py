"""Prompt and output lengths of finished requests, and the conversations that they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats, Ints
from loadtest.record import UserClass
from loadtest.workload.classes import text_popularity


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
    classes: "Sequence[ClassLengths]" = ()
    """The lengths of each class of users, of all classes of the run; empty without classes."""

    @property
    def own_prompt(self) -> Ints:
        """Tokens of each prompt that no other request shares, at least one. Shape (n,)."""
        shared = np.full(len(self), self.shared_prefix)
        for one in self.classes:
            shared[one.rows] = one.pairs.shared_prefix
        return np.asarray(np.maximum(self.prompt - shared, 1))

    def cut(self, longest: int) -> "LengthPairs":
        """Returns the lengths in a context of `longest` tokens: without prompts that leave no room for an
        answer, and with shorter answers."""
        fits = self.prompt < longest
        place = np.cumsum(fits) - 1
        return replace(
            self,
            prompt=self.prompt[fits],
            output=np.minimum(self.output, longest - self.prompt)[fits],
            conversation=self.conversation[fits],
            classes=[
                replace(one, rows=place[one.rows[fits[one.rows]]], pairs=one.pairs.cut(longest))
                for one in self.classes
            ],
        )

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassLengths:
    """The lengths of one class of users, and the texts with which its conversations begin."""

    name: str
    weight: float
    """Share of the users, relative to the other classes."""
    rows: Ints
    """Positions of its requests among all, shape (m,); none if no request of the class has finished."""
    pairs: LengthPairs
    """Those requests. Their `shared_prefix` is the length of each shared text, in whole blocks."""
    shared_texts: Sequence[float]
    """Popularity of each shared text."""


def length_pairs_of(runs: Sequence[Run], *, block_tokens: int) -> LengthPairs:
    """Collects the lengths of every finished request whose usage the server sent."""
    prompt, output, conversation, cached, finished = [], [], [], [], []
    before = 0
    for run in runs:
        rows = run.requests
        chats = conversation_ids(rows)
        known = rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1)
        prompt.append(rows.prompt_tokens[known].astype(np.int64))
        output.append(rows.output_tokens[known].astype(np.int64))
        conversation.append(chats[known] + before)
        cached.append(rows.cached_tokens[known & (rows.turn == 0)])
        finished.append(known)
        before += int(chats.max(initial=-1)) + 1
    _, chat = np.unique(np.concatenate(conversation), return_inverse=True)
    found = LengthPairs(
        prompt=np.concatenate(prompt),
        output=np.concatenate(output),
        conversation=chat.astype(np.int64),
        shared_prefix=_shared_prefix(np.concatenate(cached), block_tokens),
    )
    if not runs[-1].info.classes:
        return found
    hits = np.concatenate(cached)
    caches = runs[-1].info.server.enable_prefix_caching
    share = caches or (caches is None and bool((hits[~np.isnan(hits)] > 0).any()))
    classes = []
    for one in runs[-1].info.classes:
        mine = [run.requests.of_class(one.name)[known] for run, known in zip(runs, finished, strict=True)]
        classes.append(_class_lengths(one, found, np.concatenate(mine), block_tokens if share else None))
    return replace(found, shared_prefix=0, classes=classes)


def _class_lengths(
    user_class: UserClass, everyone: LengthPairs, mine: Bools, block_tokens: int | None
) -> ClassLengths:
    """block_tokens: None if the server keeps no text for several requests."""
    shared = user_class.shared_tokens // block_tokens * block_tokens if block_tokens else 0
    return ClassLengths(
        name=user_class.name,
        weight=user_class.weight,
        rows=np.flatnonzero(mine),
        pairs=replace(
            everyone,
            prompt=everyone.prompt[mine],
            output=everyone.output[mine],
            conversation=everyone.conversation[mine],
            shared_prefix=shared,
        ),
        shared_texts=text_popularity(user_class),
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
