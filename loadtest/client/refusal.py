"""Reads what a server says when it refuses a request: its words, and how long to wait. Knows no stream."""

import asyncio
import email.utils
import time
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

from loadtest.client.transcript import MAX_ERROR_CHARS, error_excerpt

MAX_REFUSAL_BYTES = 16 * 1024
REFUSAL_LIMIT_S = 2.0
"""Seconds that the body of a refusal may take; what has come by then is kept."""


class RefusedAnswer(NamedTuple):
    """What an answer with a status other than 200 says."""

    words: str | None
    retry_after_s: float | None
    """Seconds after which the server wants to be asked again; None if it does not say."""


async def read_refusal(response: aiohttp.ClientResponse) -> RefusedAnswer:
    """Reads the beginning of the body of an answer with a status other than 200."""
    body = b""
    try:
        async with asyncio.timeout(REFUSAL_LIMIT_S):
            while len(body) < MAX_REFUSAL_BYTES and (piece := await response.content.readany()):
                body += piece
    except (aiohttp.ClientError, TimeoutError):
        pass  # the status says enough
    retry = response.headers.get("Retry-After")
    location = response.headers.get("Location")
    notes = [
        f"redirects to {location}" if location else "",
        f"Retry-After: {retry}" if retry else "",
        error_excerpt(body),
    ]
    words = "; ".join(note for note in notes if note)[:MAX_ERROR_CHARS] or None
    return RefusedAnswer(words, retry_after_s(response.headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until the time that the header `Retry-After` names, a number of seconds or a date.
    A date is compared with the server's own clock (the header `Date`) if it states one. Returns None without
    a usable value."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _unix_s(value)
    if until is None:
        return None
    return max(0.0, until - (_unix_s(headers.get("Date", "")) or time.time()))


def _unix_s(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
