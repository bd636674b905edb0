"""Recognises the format of a file of sessions from its beginning, and chooses its reader."""

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadtest.workload.sessions.lines import SessionFile
from loadtest.workload.sessions.openai_batch import read_batch_sessions
from loadtest.workload.sessions.otel import read_otlp_turns, read_span_turns
from loadtest.workload.sessions.own_format import read_own_sessions
from loadtest.workload.sessions.recorded import FileError, LooseTurn, RecordedSession
from loadtest.workload.sessions.sharegpt import read_sharegpt_array, read_sharegpt_lines
from loadtest.workload.sessions.traffic_logs import (
    read_azure_sessions,
    read_burstgpt_turns,
    read_mooncake_sessions,
)

_HEAD_BYTES = 1 << 16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
KNOWN_FORMATS = (
    "our own JSONL, ShareGPT, Mooncake, Azure and BurstGPT CSV, OpenAI batch and OpenTelemetry spans "
    "(docs/workloads.md)"
)


class SessionFormat(NamedTuple):
    """A format, and the one of its two readers that it has."""

    name: str
    sessions: Callable[[SessionFile], Iterator[RecordedSession]] | None = None
    """Reads a file in which the requests of a session stand together."""
    turns: Callable[[SessionFile], Iterator[LooseTurn]] | None = None
    """Reads a file in which they stand apart."""
    in_order_of_time: bool = True
    """Whether the requests of a session that stand apart follow each other in time. Spans are written when
    they end."""


OWN = SessionFormat("seatcount", sessions=read_own_sessions)
SHAREGPT = SessionFormat("ShareGPT", sessions=read_sharegpt_array)
SHAREGPT_LINES = SessionFormat("ShareGPT", sessions=read_sharegpt_lines)
MOONCAKE = SessionFormat("Mooncake", sessions=read_mooncake_sessions)
AZURE = SessionFormat("Azure", sessions=read_azure_sessions)
BURSTGPT = SessionFormat("BurstGPT", turns=read_burstgpt_turns)
BATCH = SessionFormat("OpenAI batch", sessions=read_batch_sessions)
OTLP = SessionFormat("OpenTelemetry", turns=read_otlp_turns, in_order_of_time=False)
SPANS = SessionFormat("OpenTelemetry", turns=read_span_turns, in_order_of_time=False)
_KEYS = (
    ({"turns"}, OWN),
    ({"timestamp", "input_length", "output_length"}, MOONCAKE),
    ({"custom_id", "body"}, BATCH),
    ({"conversations"}, SHAREGPT_LINES),
    ({"resourceSpans"}, SPANS),
    ({"attributes", "traceId"}, SPANS),
    ({"attributes", "context"}, SPANS),
)


def recognise(path: Path) -> SessionFormat:
    """Returns the format of a file. Raises OSError, or ValueError if the format is unknown or the file is no
    UTF-8 text."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith((_GZIP, _ZSTD)):
        raise FileError(path, None, "the file is compressed; unpack it first")
    text = _decoded(path, head).strip()
    if not text:
        raise FileError(path, None, "the file holds no sessions")
    if text.startswith("["):
        return SHAREGPT
    if text.startswith("{"):
        return _by_keys(path, text, is_whole=len(head) < _HEAD_BYTES)
    header = text.split("\n", 1)[0].lower()
    if "request tokens" in header:
        return BURSTGPT
    if header.count(",") == 2:
        return AZURE
    raise _unknown(path)


def _decoded(path: Path, head: bytes) -> str:
    """Returns the beginning of a file as text. A character may be cut off at its end."""
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError as error:
        line = head.count(b"\n", 0, error.start) + 1
        raise FileError(path, line, f"not UTF-8 text (byte {error.start} of the file)") from None


def _by_keys(path: Path, text: str, *, is_whole: bool) -> SessionFormat:
    first, *others = text.split("\n", 1)
    try:
        found = msgspec.json.decode(first)
    except msgspec.MsgspecError as error:
        if '"resourceSpans"' in text:
            return OTLP
        named = [each for keys, each in _KEYS if all(f'"{key}"' in first for key in keys)]
        if named and not others and not is_whole:
            return named[0]  # a first line that is longer than what was read
        if named:
            raise FileError(path, 1, f"not JSON ({error})") from None
        raise _unknown(path) from None
    keys = set(found)
    if "resourceSpans" in keys and not others:
        return OTLP
    if "messages" in keys:
        raise FileError(path, 1, "a file of prompts and no sessions; --prompts sends it")
    for needed, each in _KEYS:
        if needed <= keys:
            return each
    raise _unknown(path)


def _unknown(path: Path) -> FileError:
    return FileError(path, None, f"the format is unknown; known are {KNOWN_FORMATS}")
