"""Sends requests before the load, to measure how the server counts tokens and to warm up the server. Writes
no rows; knows no Locust."""

import asyncio

import aiohttp

from loadtest.client.body import encode_chat_body
from loadtest.client.stream import StreamRequest, stream_chat
from loadtest.client.target import Target
from loadtest.errors import InputError
from loadtest.record import Outcome, RequestRecord, ServerInfo
from loadtest.settings import Settings
from loadtest.workload.prompts import PromptScale, probe_text

FIRST_TOKENS_TIMEOUT_S = 180.0
"""Time limit of a test request, in seconds: a server may compile when it is first used."""
WARM_UPS = 4
PROBE_TOKENS = 8


async def _ask(
    session: aiohttp.ClientSession,
    target: Target,
    settings: Settings,
    *,
    model: str,
    text: str,
    max_tokens: int = PROBE_TOKENS,
) -> RequestRecord:
    """Sends one test request and returns its record, which is not stored in the run folder. Raises InputError
    if the request fails."""
    request = StreamRequest(
        url=f"{target.api_url}/chat/completions",
        body=encode_chat_body(
            settings, model=model, messages=[{"role": "user", "content": text}], max_tokens=max_tokens
        ),
        request_id="seatcount-preflight",
        model=model,
        scenario="preflight",
        worker="",
        user=0,
        turn=0,
        level_users=None,
        max_tokens=max_tokens,
        timeout_s=min(settings.request_timeout_s, FIRST_TOKENS_TIMEOUT_S),
    )
    record, _, cancelled, _ = await stream_chat(session, request)
    if cancelled is not None:
        raise cancelled
    if record.outcome not in (Outcome.OK, Outcome.EMPTY):
        raise InputError(_unanswered(record))
    return record


def _unanswered(record: RequestRecord) -> str:
    if record.http_status in (401, 403):
        return f"A test request was answered {record.http_status}: set the server's key as LOADTEST_API_KEY."
    failure = f"HTTP {record.http_status}" if record.outcome is Outcome.HTTP_ERROR else record.outcome.value
    detail = f": {record.error.rstrip('.')}" if record.error else ""
    return f"A streamed test request failed ({failure}{detail})."


async def measure_prompt_scale(
    session: aiohttp.ClientSession,
    target: Target,
    settings: Settings,
    *,
    model: str,
    server: ServerInfo,
    nonce: str,
) -> tuple[PromptScale, RequestRecord]:
    """Measures with two prompts how many tokens the chat template adds to a prompt and how many tokens a word
    takes.

    Returns two values: the measured scale, and the record of the first request. If the server sends no
    usage, the scale is a guess: 0 tokens for the template and 1.3 tokens per word. Raises InputError if a
    request fails or the longer prompt does not count more tokens.
    """
    room = (server.max_model_len or 4096) - PROBE_TOKENS
    long = max(24, min(400, room // 4))
    short = long // 4
    first = await _ask(session, target, settings, model=model, text=probe_text(nonce=nonce, words=short))
    second = await _ask(session, target, settings, model=model, text=probe_text(nonce=nonce, words=long))
    if first.prompt_tokens is None or second.prompt_tokens is None:
        return PromptScale(overhead_tokens=0, tokens_per_word=1.3), first
    per_word = (second.prompt_tokens - first.prompt_tokens) / (long - short)
    if per_word <= 0:
        raise InputError("usage.prompt_tokens does not grow with the prompt: prompts cannot be sized.")
    return PromptScale(
        overhead_tokens=first.prompt_tokens - per_word * short, tokens_per_word=per_word
    ), first


async def warm_up(
    session: aiohttp.ClientSession,
    target: Target,
    settings: Settings,
    *,
    model: str,
    scale: PromptScale,
    nonce: str,
) -> None:
    """Sends a few requests together, so that the first recorded requests do not wait for compilation or for
    caches to be filled."""
    texts = [probe_text(nonce=f"{nonce}w{i}", words=32 + i) for i in range(WARM_UPS)]
    asks = (_ask(session, target, settings, model=model, text=text, max_tokens=16) for text in texts)
    await asyncio.gather(*asks)
