"""Reads the input file of OpenAI's batch API: JSON Lines, one request a line."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.recorded import RecordedSession, RecordedTurn, messages_tokens

_UNSTATED_ANSWER = 128
"""Answer that is asked for where a request states no `max_tokens`."""
NO_MAX_TOKENS = "{file}: requests without max_tokens ({count}): answers of 128 tokens are asked for."
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Body(msgspec.Struct):
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None


class _Line(msgspec.Struct):
    custom_id: str
    body: _Body
    url: str = ""


def read_batch_sessions(file: SessionFile) -> Iterator[RecordedSession]:
    """Yields a session of one turn for each request. Its messages are sent as they are; of the other keys,
    only the length of the answer counts. Raises FileError."""
    decode = msgspec.json.Decoder(_Line).decode
    for line in file.lines():
        try:
            row = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise file.error(f"not a chat completion of a batch ({error})") from None
        output = row.body.max_completion_tokens or row.body.max_tokens
        if output is None:
            file.notes[NO_MAX_TOKENS] += 1
        turn = RecordedTurn(
            prompt_tokens=messages_tokens(row.body.messages),
            output_tokens=output or _UNSTATED_ANSWER,
            at_s=0.0,
            messages=row.body.messages,
            states_prompt=False,
            states_output=False,
        )
        yield RecordedSession(name=row.custom_id, turns=[turn])
