"""The person's own prompts, from a file: which of them is sent next, so that none is sent twice before all
have been sent. Knows no network."""

import collections
import random
from collections.abc import Iterable

from loadtest.workload.prompts import Message, Prompt

BYTES_PER_TOKEN = 4
"""Bytes of text in one token, as a rule of thumb for English (OpenAI's tokenizer guide)."""
MESSAGE_TOKENS = 5
"""Tokens that a chat template puts around a message: those of ChatML, which most templates resemble."""
_BLOCK_BYTES = 16 * BYTES_PER_TOKEN
"""Text of one block of a prefix cache: vLLM's blocks have 16 tokens by default."""


class OwnPrompts:
    """The prompts of a file in the order in which they are sent: first as they stand in the file, then, each
    time that all have been sent, shuffled anew. Equal seeds give equal orders, in every process."""

    def __init__(self, prompts: list[Prompt], *, seed: int) -> None:
        self.prompts = prompts
        self._seed = seed
        self._round = 0
        self._order = list(range(len(prompts)))

    def __len__(self) -> int:
        return len(self.prompts)

    def at(self, number: int) -> Prompt:
        """Returns the prompt that is sent as the one with this number; the first is 0."""
        round_, place = divmod(number, len(self.prompts))
        if round_ != self._round:
            self._round = round_
            self._order = list(range(len(self.prompts)))
            if round_:
                random.Random(f"{self._seed}/prompts/{round_}").shuffle(self._order)
        return self.prompts[self._order[place]]

    def hit_fraction(self) -> float:
        """Returns the share of the prompts' text that a prefix cache without a limit would hold already if
        each prompt is sent once: what prompts of the file share with each other. Text is compared in blocks,
        as vLLM's cache does, with BYTES_PER_TOKEN for the length of a token. The chat template, which is the
        same for all prompts, is left out."""
        seen: set[int] = set()
        hits = total = 0
        for prompt in self.prompts:
            text = _text(prompt.messages)
            total += len(text)
            block = 0
            for end in range(_BLOCK_BYTES, len(text) + 1, _BLOCK_BYTES):
                block = hash((block, text[end - _BLOCK_BYTES : end]))
                hits += _BLOCK_BYTES * (block in seen)
                seen.add(block)
        return hits / total


def estimate_tokens(messages: Iterable[Message]) -> int:
    """Returns about how many tokens these messages have with their chat template. Images and sound are left
    out."""
    return sum(MESSAGE_TOKENS + len(_message_text(message)) // BYTES_PER_TOKEN for message in messages)


def _text(messages: Iterable[Message]) -> bytes:
    return b"".join(_message_text(message) for message in messages)


def _message_text(message: Message) -> bytes:
    content = message["content"]
    if not isinstance(content, str):
        parts = content if isinstance(content, list) else [content]
        content = "".join(
            str(part["text"]) if isinstance(part, dict) and "text" in part else "" for part in parts
        )
    return f"{message['role']}\n{content}\n".encode()


class PromptQueue:
    """The numbers of own prompts that one process may send, and how many it has sent. Numbers come from the
    leader of the run, which gives each to one process only."""

    def __init__(self, prompts: OwnPrompts) -> None:
        self.used = 0
        self._prompts = prompts
        self._numbers: collections.deque[int] = collections.deque()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, numbers: Iterable[int]) -> None:
        self._numbers.extend(numbers)

    def peek(self) -> Prompt:
        """Returns the next prompt, which stays the next. Raises IndexError if there is no number left."""
        return self._prompts.at(self._numbers[0])

    def take(self) -> Prompt:
        """Returns the next prompt and counts it as sent. Raises IndexError if there is no number left."""
        self.used += 1
        return self._prompts.at(self._numbers.popleft())
