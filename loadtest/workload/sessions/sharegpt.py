"""Reads conversations in the format of ShareGPT: a JSON array, or JSON Lines, of objects with
`conversations`."""

from collections.abc import Iterator
from typing import Any

import msgspec

from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.recorded import (
    RecordedSession,
    RecordedTurn,
    messages_tokens,
    text_tokens,
)

NO_ANSWER = "Left out of {file}: last questions without an answer ({count})."
NO_QUESTION = "Left out of {file}: answers without a question before them ({count})."
NOTHING_ASKED = "Left out of {file}: conversations without a question that is answered ({count})."
_ANSWERS = ("gpt", "chatgpt", "assistant", "bing", "bard", "model", "function_call")


def read_sharegpt_array(file: SessionFile) -> Iterator[RecordedSession]:
    """Yields the conversations of a JSON array. Raises FileError."""
    for number, found in enumerate(file.objects(r"\["), start=1):
        yield from _conversation(file, found, number)


def read_sharegpt_lines(file: SessionFile) -> Iterator[RecordedSession]:
    """Yields the conversations of a file with one on each line. Raises FileError."""
    for line in file.lines():
        try:
            found = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise file.error(f"not JSON ({error})") from None
        yield from _conversation(file, found, file.line)


def _conversation(file: SessionFile, found: Any, number: int) -> Iterator[RecordedSession]:
    """Yields the session of one conversation, or nothing if it has no question that is answered.

    Messages between two answers are sent together. The file states no tokens and no times."""
    said = found.get("conversations") if isinstance(found, dict) else None
    if not isinstance(said, list):
        raise file.error("not a conversation of ShareGPT: there is no list 'conversations'")
    turns: list[RecordedTurn] = []
    asked: list[dict[str, Any]] = []
    is_asked = False  # a system prompt alone is no question
    for each in said:
        role, text = _message(file, each)
        if role not in _ANSWERS:
            asked.append({"role": "system" if role == "system" else "user", "content": text})
            is_asked = is_asked or role != "system"
        elif not is_asked:
            file.notes[NO_QUESTION] += 1
        else:
            turns.append(
                RecordedTurn(
                    prompt_tokens=messages_tokens(asked),
                    output_tokens=text_tokens(text),
                    messages=asked,
                    answer=text,
                    states_prompt=False,
                    states_output=False,
                )
            )
            asked, is_asked = [], False
    if is_asked:
        file.notes[NO_ANSWER] += 1
    if turns:
        yield RecordedSession(name=str(found.get("id", number)), turns=turns)
    else:
        file.notes[NOTHING_ASKED] += 1


def _message(file: SessionFile, each: Any) -> tuple[str, str]:
    """Returns who speaks, in lower case, and what."""
    if isinstance(each, dict):
        role = each["from"] if "from" in each else each.get("role")
        text = each["value"] if "value" in each else each.get("content")
        if isinstance(role, str) and isinstance(text, str):
            return role.lower(), text
    raise file.error("not a conversation of ShareGPT: a message needs the texts 'from' and 'value'")
