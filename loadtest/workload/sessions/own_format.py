"""Reads our own format of sessions: JSON Lines, one session a line (docs/workloads.md)."""

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.recorded import (
    RecordedSession,
    RecordedTurn,
    messages_tokens,
    text_tokens,
)
from loadtest.workload.traces import TRACE_BLOCK_TOKENS

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    prompt_tokens: _Count | None = None
    output_tokens: _Count | None = None
    pause_s: _Seconds | None = None
    at_s: _Seconds | None = None
    step: Annotated[int, msgspec.Meta(ge=0)] = 0
    anew: bool = False
    shared: tuple[int, ...] = ()
    text: str | None = None
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)] | None = None
    answer: str | None = None


class _Session(msgspec.Struct, forbid_unknown_fields=True):
    turns: Annotated[list[_Turn], msgspec.Meta(min_length=1)]
    session: str | int | None = None
    start_s: _Seconds | None = None
    block_tokens: _Count = TRACE_BLOCK_TOKENS


def read_own_sessions(file: SessionFile) -> Iterator[RecordedSession]:
    """Yields the sessions of a file in our own format. Raises FileError."""
    decode = msgspec.json.Decoder(_Session).decode
    for line in file.lines():
        try:
            found = decode(line)
        except UnicodeDecodeError:
            raise file.error("not UTF-8 text") from None
        except msgspec.MsgspecError as error:
            raise file.error(_words(error)) from None
        turns = []
        last_s = 0.0
        for number, turn in enumerate(found.turns):
            read = _turn(file, turn, number, last_s=last_s)
            last_s = last_s if read.at_s is None else read.at_s
            turns.append(read)
        yield RecordedSession(
            name=str(file.line if found.session is None else found.session),
            start_s=found.start_s,
            turns=turns,
            block_tokens=found.block_tokens,
        )


def _turn(file: SessionFile, turn: _Turn, number: int, *, last_s: float) -> RecordedTurn:
    place = f"turn {number}"
    if turn.text is not None and turn.messages is not None:
        raise file.error(f"{place}: text and messages both say what is sent; leave one out")
    messages = turn.messages
    if turn.text is not None:
        messages = [{"role": "user", "content": turn.text}]
    if messages is None and turn.prompt_tokens is None:
        raise file.error(f"{place}: prompt_tokens is missing, and there is no text")
    if turn.output_tokens is None and turn.answer is None:
        raise file.error(f"{place}: output_tokens is missing, and there is no answer")
    if turn.shared and (messages is not None or (number and not turn.anew)):
        raise file.error(
            f"{place}: shared names blocks that a synthetic prompt without history begins with, and this is "
            "none"
        )
    if turn.at_s is not None and turn.at_s < last_s:
        raise file.error(f"{place}: the turn goes back in time (at_s {turn.at_s:g} after {last_s:g})")
    pause_s = turn.pause_s
    if pause_s is None:
        pause_s = 0.0 if turn.at_s is None else turn.at_s - last_s
    return RecordedTurn(
        prompt_tokens=turn.prompt_tokens or messages_tokens(messages or []),
        output_tokens=turn.output_tokens or text_tokens(turn.answer or ""),
        pause_s=pause_s,
        at_s=turn.at_s if number or turn.at_s is not None else 0.0,
        step=turn.step,
        anew=turn.anew and number > 0,
        shared=turn.shared,
        messages=messages,
        answer=turn.answer,
        states_prompt=turn.prompt_tokens is not None,
        states_output=turn.output_tokens is not None,
    )


def _words(error: msgspec.MsgspecError) -> str:
    """Says what is wrong with a line, in the words of the file's keys."""
    words = str(error)
    unknown = re.search("unknown field `(.*?)`", words)
    if unknown is None:
        return f"not a session ({words})"
    key = unknown[1]
    known = (*_Session.__struct_fields__, *_Turn.__struct_fields__)
    if key == "branches":
        return "branches that run at once are not replayed: give each branch a line of its own"
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"unknown key '{key}' ({hint})"
