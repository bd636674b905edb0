"""Reads recorded arrivals from a file: Mooncake's JSONL, the Azure CSV or a plain CSV."""

import csv
import datetime
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec

from loadtest.workload.arrivals import Arrival

TRACE_BLOCK_TOKENS = 512
"""Tokens of a prefix block in Mooncake's traces. An id in `hash_ids` stands for one block and all blocks
before it."""


class _TraceLine(msgspec.Struct):
    """One line of a Mooncake trace."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(gt=0)]
    output_length: Annotated[int, msgspec.Meta(gt=0)]
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path, *, speed: float) -> list[Arrival]:
    """Reads a trace and returns its arrivals, sorted by time. The first is due at 0 s. The recorded gaps are
    divided by `speed`.

    The format of the file is one of:
    - Mooncake's JSONL: `timestamp` in ms, `input_length`, `output_length`, `hash_ids`,
    - the Azure LLM inference CSV: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`,
    - a plain CSV: seconds, prompt tokens, output tokens.

    In a CSV a length of 0 is read as one token. Raises OSError, or ValueError if the file holds
    no requests or a line is wrong (with its number).
    """
    with path.open(encoding="utf-8", newline="") as lines:
        first = lines.readline()
        lines.seek(0)
        rows = list(_read_jsonl(path, lines) if first.lstrip().startswith("{") else _read_csv(path, lines))
    if not rows:
        raise ValueError(f"{path} holds no requests.")
    rows.sort(key=lambda row: row.due_s)
    start = rows[0].due_s
    return [row._replace(number=i, due_s=(row.due_s - start) / speed) for i, row in enumerate(rows)]


def _read_jsonl(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_TraceLine)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}, line {number}: not a request of a trace ({error}).") from error
        yield Arrival(0, row.timestamp / 1000, row.input_length, row.output_length, row.hash_ids)


def _read_csv(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    for number, row in enumerate(csv.reader(lines), start=1):
        if not row or (number == 1 and _is_header(row)):
            continue
        try:
            due, prompt, output = row
            yield Arrival(0, recorded_seconds(due), max(1, int(prompt)), max(1, int(output)))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a time, prompt tokens and output tokens ({error})."
            ) from error


def _is_header(row: list[str]) -> bool:
    return not any(cell.strip().isdigit() for cell in row[1:])


def recorded_seconds(text: str) -> float:
    """Returns a number of seconds as it is, and a date and time as Unix seconds. A date is cut after six
    decimals, because Azure writes seven and Python reads six."""
    if ":" not in text:
        return float(text)
    text = text.strip()[:26]
    try:
        return _minute(text[:17]) + float(text[17:])
    except ValueError:
        moment = datetime.datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


@lru_cache(maxsize=16)
def _minute(text: str) -> float:
    """Returns the Unix seconds of a minute in UTC, such as `2023-11-16 18:15:`. Traces have many requests in
    each, and one date takes more time than all else of a line."""
    return datetime.datetime.fromisoformat(f"{text}00+00:00").timestamp()
