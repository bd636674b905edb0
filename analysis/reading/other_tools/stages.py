"""The form that all result files are brought into: stages of requests; and what their readers share."""

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
    """One request; names and units are those of `analysis.reading.columns.Requests`."""

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
    conversation: str | None = None
    turn: int = 0
    gap_s: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResultFile:
    """A file, and what it says of all its requests."""

    path: Path
    tool: str
    model: str
    host: str
    lacks: list[str]
    """Full sentences: what this tool's files do not tell."""
    whole_seconds: bool = False
    """Whether its clock is known to about a second only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadStage:
    """Requests of one concurrency, or of one arrival process (then `users` is None)."""

    source: ResultFile
    name: str
    users: int | None
    rows: list[ResultRow]

    @property
    def label(self) -> str:
        """File and stage, for messages: `sweep.json (concurrent@8)`."""
        return f"{self.source.path.name} ({self.name})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A JSON object of a file, not decoded yet."""

    data: bytes
    keys: frozenset[str]


def number_or_nan(value: float | None) -> float:
    return NAN if value is None else value


def url_without_credentials(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def status_in(text: str | None) -> float:
    """The status code in a message of httpx such as "Server error '503 Service Unavailable' for url"."""
    found = re.search(r"'([345]\d\d) ", text or "")
    return float(found[1]) if found else NAN


def status_of(reason: str) -> float:
    """The status code of a reason phrase, which is all that vllm bench serve keeps; nan for other texts."""
    return next((float(status) for status in HTTPStatus if status.phrase == reason), NAN)


def failure_of(text: str, status: float) -> Outcome:
    """The outcome that an exception's name and words tell; STREAM_ERROR where they tell nothing."""
    if not np.isnan(status):
        return Outcome.HTTP_ERROR
    words = text.lower()
    if "timeout" in words or "timed out" in words:
        return Outcome.TIMEOUT
    if "disconnect" in words:
        return Outcome.DISCONNECTED
    return Outcome.CONNECT_ERROR if "connect" in words else Outcome.STREAM_ERROR
