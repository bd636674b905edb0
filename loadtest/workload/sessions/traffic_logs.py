"""Reads logs of single requests: Mooncake's JSONL, the CSV of Azure and BurstGPT, and a plain CSV."""

import csv
import math
from collections.abc import Iterator
from typing import Annotated

import msgspec

from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.recorded import LooseTurn, RecordedSession, RecordedTurn
from loadtest.workload.traces import recorded_seconds

FAILED_THEN = (
    "Left out of {file}: requests that failed when they were recorded, with 0 response tokens ({count})."
)
_SESSION, _ELAPSED = "session id", "elapsed time"


class _MooncakeLine(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(gt=0)]
    output_length: Annotated[int, msgspec.Meta(gt=0)]
    hash_ids: tuple[int, ...] = ()


def read_mooncake_sessions(file: SessionFile) -> Iterator[RecordedSession]:
    """Yields a session of one turn for each line of a Mooncake trace. Raises FileError."""
    decode = msgspec.json.Decoder(_MooncakeLine).decode
    for line in file.lines():
        try:
            row = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise file.error(f"not a request of a trace ({error})") from None
        yield _single(
            file,
            start_s=row.timestamp / 1000,
            prompt_tokens=row.input_length,
            output_tokens=row.output_length,
            shared=row.hash_ids,
        )


def read_azure_sessions(file: SessionFile) -> Iterator[RecordedSession]:
    """Yields a session of one turn for each line of a CSV of time, prompt tokens and output tokens, as the
    Azure LLM inference traces of 2023 and 2024 have it. As in `--trace`, a length of 0 is one token. Raises
    FileError."""
    for row in csv.reader(file.texts()):
        if file.line == 1 and not any(cell.strip().isdigit() for cell in row[1:]):
            continue
        try:
            due, prompt, output = row
            if not math.isfinite(start_s := recorded_seconds(due)):
                raise ValueError(due)  # noqa: TRY301 (it is one of the mistakes that are caught here)
            yield _single(
                file,
                start_s=start_s,
                prompt_tokens=max(1, int(prompt)),
                output_tokens=max(1, int(output)),
            )
        except ValueError as error:
            raise file.error(f"not a time, prompt tokens and output tokens ({error})") from None


def read_burstgpt_turns(file: SessionFile) -> Iterator[LooseTurn]:
    """Yields the requests of a BurstGPT CSV that were answered. A request without a session id, as the API's
    are, is a session of its own. Raises FileError."""
    rows = csv.reader(file.texts())
    header = {name.strip().lower(): column for column, name in enumerate(next(rows))}
    try:
        at, prompt, output = (header[name] for name in ("timestamp", "request tokens", "response tokens"))
    except KeyError as error:
        raise file.error(f"the header has no column {error}") from None
    session, elapsed = header.get(_SESSION), header.get(_ELAPSED)
    for row in rows:
        try:
            at_s, asked, answer = float(row[at]), _count(row[prompt]), _count(row[output])
            lasted_s = float(row[elapsed]) if elapsed is not None and row[elapsed] else None
        except (ValueError, IndexError) as error:
            raise file.error(f"not a request of BurstGPT ({error})") from None
        if not (math.isfinite(at_s + (lasted_s or 0.0)) and min(asked, answer, lasted_s or 0.0) >= 0):
            raise file.error("a negative or infinite number")
        if not answer:
            file.notes[FAILED_THEN] += 1
            continue
        name = row[session].strip() if session is not None and session < len(row) else ""
        end_s = None if lasted_s is None else at_s + lasted_s
        yield LooseTurn(name, file.line, at_s, end_s, max(1, asked), answer)


def _count(text: str) -> int:
    """Returns a number of tokens, which some exports write as `12.0`."""
    return int(text) if text.isdigit() else int(float(text))


def _single(
    file: SessionFile, *, start_s: float, prompt_tokens: int, output_tokens: int, shared: tuple[int, ...] = ()
) -> RecordedSession:
    turn = RecordedTurn(prompt_tokens=prompt_tokens, output_tokens=output_tokens, at_s=0.0, shared=shared)
    return RecordedSession(name=str(file.line), start_s=start_s, turns=[turn])
