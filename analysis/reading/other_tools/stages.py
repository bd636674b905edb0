"""Stages: the common form into which the result files of all tools are read.

Also holds helper functions that the readers share.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import numpy as np

from analysis.reading.columns import NAN
from loadtest.record import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One request. Names and units are those of `analysis.reading.columns.Requests`."""

    start_unix_s: float
    end_s: float
    outcome: Outcome
    sent_s: float = 0.0
    scheduled_unix_s: float = NAN
    first_chunk_s: float = NAN
    first_answer_s: float = NAN
    last_chunk_s: float = NAN
    chunks: int = 0
    first_chunk_tokens: float = 1.0
    prompt_tokens: float = NAN
    output_tokens: float = NAN
    cached_tokens: float = NAN
    http_status: float = NAN
    max_tokens: float = NAN
    pause_s: float = NAN
    error: str | None = None
    conversation: str | None = None
    turn: int = 0
    gap_s: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResultFile:
    """One result file, with what holds for all its requests."""

    path: Path
    tool: str
    model: str
    host: str
    lacks: list[str]
    """Sentences for the report: what this tool's files do not contain."""
    whole_seconds: bool = False
    """Whether the file's times are known to about a second only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadStage:
    """Requests that were sent under one load.

    The load is a constant number of users, or an arrival process; `users` is None for an arrival process.
    """

    source: ResultFile
    name: str
    users: int | None
    rows: list[ResultRow]

    @property
    def label(self) -> str:
        """Name of file and stage for messages, such as `sweep.json (concurrent@8)`."""
        return f"{self.source.path.name} ({self.name})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A JSON object of a file: its bytes, not decoded yet, and its top-level keys."""

    data: bytes
    keys: frozenset[str]


def number_or_nan(value: float | None) -> float:
    return NAN if value is None else value


def url_without_credentials(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def status_in(text: str | None) -> float:
    """Returns the HTTP status code that an error message of httpx contains; nan if it contains none.

    Such a message is "Server error '503 Service Unavailable' ...".
    """
    found = re.search(r"'([345]\d\d) ", text or "")
    return float(found[1]) if found else NAN


def status_of(reason: str) -> float:
    """Returns the HTTP status code of a reason phrase such as `Service Unavailable`; nan if it is unknown.

    vllm bench serve keeps only the phrase.
    """
    return next((float(status) for status in HTTPStatus if status.phrase == reason), NAN)


def failure_of(text: str, status: float) -> Outcome:
    """Returns the outcome of a failed request.

    The outcome is HTTP_ERROR if there is a status code. Otherwise it follows from words in the exception's
    name and message, and is STREAM_ERROR if no word is known.
    """
    if not np.isnan(status):
        return Outcome.HTTP_ERROR
    words = text.lower()
    if "timeout" in words or "timed out" in words:
        return Outcome.TIMEOUT
    if "disconnect" in words:
        return Outcome.DISCONNECTED
    return Outcome.CONNECT_ERROR if "connect" in words else Outcome.STREAM_ERROR
