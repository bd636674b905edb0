"""Builds conversations with given numbers of turns and pauses."""

from collections.abc import Sequence

import numpy as np

from analysis.evidence.turns import Turns


def chats(
    lengths: Sequence[int],
    *,
    outputs: int = 40,
    block_tokens: int = 8,
    answers_cached: bool = True,
    pauses_s: Sequence[float] = (3.0, 5.0, 9.0),
) -> Turns:
    """Builds one conversation for each number of turns in `lengths`.

    Every turn adds a message of 50 tokens and an answer of `outputs` tokens.
    """
    prompt = np.array([50 + turn * (50 + outputs) for length in lengths for turn in range(length)])
    length = np.array(lengths)
    reusable = np.where(prompt > 50, (prompt - 51) // block_tokens * block_tokens, 0)
    return Turns(
        prompt=prompt,
        output=np.full(len(prompt), outputs),
        first=np.cumsum(length) - length,
        length=length,
        weight=np.full(len(length), 1 / len(length)),
        reusable=reusable.astype(np.float64),
        pauses_s=np.array(pauses_s),
        pause_weight=np.full(len(pauses_s), 1 / len(pauses_s)),
        block_tokens=block_tokens,
        shared_prefix=0,
        answers_cached=answers_cached,
    )
