"""What all readers of recorded sessions produce. Knows no file format."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadtest.workload.own_prompts import BYTES_PER_TOKEN, MESSAGE_TOKENS, estimate_tokens
from loadtest.workload.traces import TRACE_BLOCK_TOKENS


class RecordedTurn(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, gc=False):
    """One request of a recorded session."""

    prompt_tokens: int
    """Tokens of the new text, at least 1: all of the prompt that is not history. An estimate for text whose
    tokens the file does not state."""
    output_tokens: int
    """Tokens of the answer, at least 1; an estimate in the same case."""
    pause_s: float = 0.0
    """Seconds from the end of the answer before to this request. Without meaning in the first turn."""
    at_s: float | None = None
    """Seconds from the session's start to this request; None if the file does not say."""
    step: int = 0
    """Number of the request in a turn of the user: above 0 for an answer of a tool."""
    anew: bool = False
    """Whether the request is sent without the history before it, as after a context was shortened."""
    shared: tuple[int, ...] = ()
    """Ids of the blocks that the text begins with: other texts with the same first ids begin alike."""
    messages: list[dict[str, Any]] | None = None
    """The new messages; None: synthetic text is sent."""
    answer: str | None = None
    """The recorded answer; None if the file has none."""
    states_prompt: bool = True
    """Whether the file states the tokens of the prompt."""
    states_output: bool = True
    """Whether the file states the tokens of the answer."""


class RecordedSession(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, gc=False):
    """The requests of one recorded conversation, in their order."""

    name: str
    """Id of the session in its file, else the number of its line."""
    start_s: float | None = None
    """When the session began, in seconds of any clock; None if the file does not say."""
    turns: list[RecordedTurn]
    block_tokens: int = TRACE_BLOCK_TOKENS
    """Tokens of each block that `shared` names."""

    def contexts(self) -> Iterator[tuple[int, int]]:
        """Yields for each turn the tokens of its prompt with its history, and those with its answer too."""
        history = 0
        for turn in self.turns:
            prompt = turn.prompt_tokens + (0 if turn.anew else history)
            history = prompt + turn.output_tokens
            yield prompt, history


class LooseTurn(NamedTuple):
    """One request of a file in which the requests of a session stand apart. Prompts include the history."""

    session: str
    line: int
    at_s: float
    end_s: float | None
    """When the answer ended, by the clock of `at_s`; None if the file does not say."""
    prompt_tokens: int
    output_tokens: int
    group: str = ""
    """Turn of the user that the request belongs to; requests of one turn are its steps. Empty: each request
    is a turn."""


class FileError(ValueError):
    """A mistake in a file of sessions, as a sentence that names the file and the line."""

    def __init__(self, path: Path, line: int | None, words: str) -> None:
        place = "" if line is None else f", line {line:,}"
        super().__init__(f"{path}{place}: {words}.")


def text_tokens(text: str) -> int:
    """Returns about how many tokens a text has, at least 1."""
    size = len(text) if text.isascii() else len(text.encode())
    return max(1, math.ceil(size / BYTES_PER_TOKEN))


def messages_tokens(messages: list[dict[str, Any]]) -> int:
    """Returns about how many tokens these messages have, at least 1. Messages may lack a content, as those
    that call a tool do."""
    if len(messages) == 1 and isinstance(text := messages[0].get("content"), str):
        return MESSAGE_TOKENS + text_tokens(text)
    known = [{"role": str(each.get("role", "")), "content": each.get("content") or ""} for each in messages]
    return max(MESSAGE_TOKENS, estimate_tokens(known))  # type: ignore[arg-type]


def session_of(turns: list[LooseTurn]) -> RecordedSession:
    """Builds a session from its requests, which are in the order of their times.

    A request continues the conversation if its prompt is longer than the prompt and the answer before it.
    Otherwise the history was shortened, and the request is sent without it.
    """
    start_s, history = turns[0].at_s, 0
    before: LooseTurn | None = None
    step = 0
    found = []
    for turn in turns:
        pause_s = 0.0
        if before is not None:
            pause_s = max(0.0, turn.at_s - (before.at_s if before.end_s is None else before.end_s))
        step = step + 1 if before is not None and turn.group and turn.group == before.group else 0
        anew = turn.prompt_tokens <= history
        found.append(
            RecordedTurn(
                prompt_tokens=turn.prompt_tokens - (0 if anew else history),
                output_tokens=turn.output_tokens,
                pause_s=pause_s,
                at_s=turn.at_s - start_s,
                step=step,
                anew=anew,
            )
        )
        history = turn.prompt_tokens + turn.output_tokens
        before = turn
    return RecordedSession(name=turns[0].session, start_s=start_s, turns=found)
