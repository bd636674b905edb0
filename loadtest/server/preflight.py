"""The first minute with a server: is it there, what does it serve, how does it count our words, is it free?
Asks, warms up and reports; leaves no rows. Knows no Locust."""

import asyncio
import ipaddress
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from loadtest.client.body import chat_body
from loadtest.client.stream import StreamRequest, stream_chat
from loadtest.client.target import Target
from loadtest.client.transport import open_session
from loadtest.errors import InputError
from loadtest.model.memory import kv_bytes_per_token, parse_config
from loadtest.record import GpuInfo, Outcome, RequestRecord, ServerInfo
from loadtest.server.gpus import choose_gpus
from loadtest.server.scrape import Scraper
from loadtest.server.vllm import read_server_info, read_server_samples
from loadtest.settings import Settings
from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import PromptScale, probe_text, read_prompts

ANSWER_TIMEOUT_S = 30.0
"""For questions that every server answers at once."""
FIRST_TOKENS_TIMEOUT_S = 180.0
"""A test request may wake a server that compiles on first use."""
WARM_UPS = 4
PROBE_TOKENS = 8


class Preflight(msgspec.Struct, kw_only=True, frozen=True):
    """What was learned about the server before the first counted request."""

    model: str
    server: ServerInfo
    gpu: GpuInfo | None
    scale: PromptScale
    sends_usage: bool
    has_metrics: bool
    ttft_s: float | None
    """Of the test request, alone on the server."""
    warnings: list[str]


async def inspect_server(target: Target, settings: Settings, *, nonce: str) -> tuple[Preflight, Scraper]:
    """Asks the server everything a run needs and warms it up. Raises InputError.

    The scraper stays open; the caller closes it.
    """
    session = open_session(headers=target.headers, tls=target.tls())
    scraper: Scraper | None = None
    try:
        listed, version = await _models(session, target), await _version(session, target)
        model, entry = _choose_model(listed, settings.model)
        gpus = choose_gpus(settings.gpu_metrics, server_is_local=await _is_local(target.api_url))
        scraper = Scraper(target, model=model, gpus=gpus)
        page = await scraper.find()
        warnings = [*_metrics_warnings(target, page), *_foreign_load(page, model)]
        server = _server_info(entry, version, page, settings)
        _refuse_impossible_lengths(settings, server.max_model_len)
        _check_prompts(settings)
        warnings += _clipping(settings, server.max_model_len)
        scale, alone = await _probe(session, target, settings, model=model, server=server, nonce=nonce)
        sends_usage = alone.output_tokens is not None
        if not sends_usage:
            warnings.append(
                "The server sends no usage: token counts, TPOT and the memory law are missing, and prompts "
                "are sized at a guess of 1.3 tokens a word."
            )
        await _warm_up(session, target, settings, model=model, scale=scale, nonce=nonce)
        await scraper.settle()
        await scraper.sample()  # a DCGM exporter tells its GPUs with the first sample
    except BaseException:
        if scraper is not None:
            await scraper.close()
        raise
    finally:
        await session.close()
    found = Preflight(
        model=model,
        server=server,
        gpu=scraper.gpu,
        scale=scale,
        sends_usage=sends_usage,
        has_metrics=page is not None,
        ttft_s=alone.chunk_s[0] - (alone.sent_s or 0) if alone.chunk_s else None,
        warnings=warnings,
    )
    return found, scraper


async def _get_json(session: aiohttp.ClientSession, url: str) -> Any:
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with session.get(url, timeout=timeout, allow_redirects=False) as response:
        if response.status != 200:
            raise _RefusedError(response.status, response.headers.get("Location"))
        return await response.json(content_type=None)


class _RefusedError(Exception):
    def __init__(self, status: int, location: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.location = location


async def _models(session: aiohttp.ClientSession, target: Target) -> list[dict[str, Any]]:
    url = f"{target.api_url}/models"
    try:
        listed = await _get_json(session, url)
        return [dict(entry) for entry in listed["data"] if isinstance(entry["id"], str)]
    except _RefusedError as refusal:
        raise InputError(_refusal_sentence(url, refusal)) from None
    except TimeoutError:
        raise InputError(f"{url} did not answer within {ANSWER_TIMEOUT_S:g} s.") from None
    except aiohttp.ClientConnectorSSLError as error:
        raise InputError(f"{target.shown}: no TLS connection ({_reason(error)}); is it http://?") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise InputError(
            f"{target.shown} has no certificate that is trusted here ({_reason(error)}): "
            "give its authority as --ca-file."
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise InputError(f"{target.shown} cannot be reached ({_reason(error)}).") from None
    except (aiohttp.ClientError, OSError) as error:
        raise InputError(f"{target.shown} does not speak HTTP ({type(error).__name__}).") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{url} is not the model list of an OpenAI-compatible server.") from None


def _reason(error: aiohttp.ClientConnectorError) -> str:
    return error.os_error.strerror or str(error.os_error) or type(error.os_error).__name__


def _refusal_sentence(url: str, refusal: _RefusedError) -> str:
    if refusal.status in (401, 403):
        return (
            f"{url} answered {refusal.status}: set the server's key as LOADTEST_API_KEY (or the right one)."
        )
    if refusal.location:
        return f"{url} redirects to {refusal.location}: give that server as --host."
    if refusal.status == 404:
        return f"{url} does not exist: --host is no OpenAI-compatible server, or has another path prefix."
    return f"{url} answered {refusal.status}: the server is not ready, or not an OpenAI-compatible one."


async def _version(session: aiohttp.ClientSession, target: Target) -> str | None:
    try:
        answer = await _get_json(session, target.api_url.removesuffix("/v1") + "/version")
    except (_RefusedError, aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else None


def _choose_model(listed: list[dict[str, Any]], wanted: str | None) -> tuple[str, dict[str, Any]]:
    names = [entry["id"] for entry in listed]
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted is None:
        listing = ", ".join(names)
        raise InputError(f"The server lists {len(names)} models; choose one with --model: {listing}.")
    if wanted not in names:
        raise InputError(f"The server does not serve '{wanted}'; --model can be: {', '.join(names)}.")
    return wanted, listed[names.index(wanted)]


async def _is_local(url: str) -> bool:
    """Whether this address is this machine: then its GPUs are the server's."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {info[4][0] for info in await asyncio.get_running_loop().getaddrinfo(host, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def _metrics_warnings(target: Target, page: str | None) -> list[str]:
    if page is not None or not target.metrics_urls:
        return []
    return ["No vLLM metrics at /metrics: the memory wall is not measured; the latency walls still answer."]


def _foreign_load(page: str | None, model: str) -> list[str]:
    rows = read_server_samples(page, model=model, unix_s=0) if page else []
    busy = sum((row.running or 0) + (row.waiting or 0) for row in rows)
    if not busy:
        return []
    return [f"{busy:g} requests of somebody else were on the server before the test began."]


def _server_info(
    entry: dict[str, Any], version: str | None, page: str | None, settings: Settings
) -> ServerInfo:
    info = read_server_info(page) if page else ServerInfo()
    owner = entry.get("owned_by")
    limit = entry.get("max_model_len")
    changes: dict[str, Any] = {
        "engine": owner if isinstance(owner, str) else None,
        "version": version,
        "max_model_len": limit if isinstance(limit, int) else None,
    }
    if settings.model_config_file is not None:
        changes["kv_bytes_per_token"] = _kv_bytes(settings.model_config_file, info.cache_dtype)
    return msgspec.structs.replace(info, **changes)


def _kv_bytes(config_file: Path, cache_dtype: str | None) -> int | None:
    """Bytes of a token's keys and values over all GPUs; None where the server quantises them."""
    try:
        config = json.loads(config_file.read_bytes())
        shape = parse_config(config)
    except (OSError, ValueError) as error:
        raise InputError(f"--model-config: {config_file}: {error}") from None
    return kv_bytes_per_token(shape) if cache_dtype in (None, "auto") else None


def _refuse_impossible_lengths(settings: Settings, max_model_len: int | None) -> None:
    if max_model_len is None or not _draws_lengths(settings):
        return
    shortest = [
        law.a if law.kind in ("fixed", "uniform") else law.mean
        for law in map(Distribution.parse, (settings.prompt_tokens, settings.output_tokens))
    ]
    if sum(shortest) > max_model_len:
        raise InputError(
            f"--prompt-tokens {settings.prompt_tokens} with --output-tokens {settings.output_tokens} does "
            f"not fit: the model's context is {max_model_len} tokens."
        )


def _clipping(settings: Settings, max_model_len: int | None) -> list[str]:
    """Says early that lengths will be clipped, from a few hundred draws."""
    if max_model_len is None or not _draws_lengths(settings):
        return []
    prompt, output = map(Distribution.parse, (settings.prompt_tokens, settings.output_tokens))
    rng = random.Random(settings.seed)
    draws = 500
    clipped = sum(prompt.draw_count(rng) + output.draw_count(rng) > max_model_len for _ in range(draws))
    if clipped < 0.01 * draws:
        return []
    return [
        f"About {clipped / draws:.0%} of the drawn lengths do not fit the model's context of {max_model_len} "
        "tokens and will be clipped."
    ]


def _draws_lengths(settings: Settings) -> bool:
    """Whether prompts have drawn lengths: a person's own traffic and a trace bring theirs."""
    return settings.prompts is None and settings.trace is None


def _check_prompts(settings: Settings) -> None:
    if settings.prompts is not None:
        try:
            read_prompts(settings.prompts)
        except (ValueError, OSError) as error:
            raise InputError(f"--prompts: {error}") from None


async def _ask(
    session: aiohttp.ClientSession,
    target: Target,
    settings: Settings,
    *,
    model: str,
    text: str,
    max_tokens: int = PROBE_TOKENS,
) -> RequestRecord:
    """One request that is not counted. Raises InputError unless it is answered."""
    request = StreamRequest(
        url=f"{target.api_url}/chat/completions",
        body=chat_body(
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
    record, _, cancelled = await stream_chat(session, request)
    if cancelled is not None:
        raise cancelled
    if record.outcome not in (Outcome.OK, Outcome.EMPTY):
        raise InputError(_unanswered(record))
    return record


def _unanswered(record: RequestRecord) -> str:
    if record.http_status in (401, 403):
        return f"A test request was answered {record.http_status}: set the server's key as LOADTEST_API_KEY."
    what = f"HTTP {record.http_status}" if record.outcome is Outcome.HTTP_ERROR else record.outcome.value
    said = f": {record.error.rstrip('.')}" if record.error else ""
    return f"A streamed test request failed ({what}{said})."


async def _probe(
    session: aiohttp.ClientSession,
    target: Target,
    settings: Settings,
    *,
    model: str,
    server: ServerInfo,
    nonce: str,
) -> tuple[PromptScale, RequestRecord]:
    """Two prompts of known length tell what the chat template adds and how many tokens a word takes."""
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


async def _warm_up(
    session: aiohttp.ClientSession,
    target: Target,
    settings: Settings,
    *,
    model: str,
    scale: PromptScale,
    nonce: str,
) -> None:
    """A few requests at once, so that the first counted ones do not pay for caches and compilation."""
    texts = [probe_text(nonce=f"{nonce}w{i}", words=32 + i) for i in range(WARM_UPS)]
    asks = (_ask(session, target, settings, model=model, text=text, max_tokens=16) for text in texts)
    await asyncio.gather(*asks)


def preflight_summary(found: Preflight, target: Target) -> list[str]:
    """What a person wants to know before the load begins, a line each."""
    server = found.server
    engine = " ".join(filter(None, [server.engine, server.version])) or "unknown engine"
    simulated = f" - SIMULATED, preset {server.simulated}" if server.simulated else ""
    pool = "unknown"
    if server.num_gpu_blocks and server.block_size:
        tokens = (server.num_gpu_blocks - 1) * server.block_size
        pool = f"{tokens:,} tokens ({server.num_gpu_blocks - 1:,} blocks of {server.block_size})"
    context = f"{server.max_model_len:,} tokens" if server.max_model_len else "unknown"
    gpu = f"{found.gpu.count} x {found.gpu.name or 'unknown'}" if found.gpu else "not seen"
    usage = "sent" if found.sends_usage else "NOT sent"
    ttft = f"{found.ttft_s * 1000:.0f} ms" if found.ttft_s is not None else "no content"
    scale = found.scale
    return [
        f"server   {target.shown} ({engine}){simulated}",
        f"model    {found.model}, context {context}",
        f"KV pool  {pool}; metrics {'found' if found.has_metrics else 'not found'}; GPU {gpu}",
        f"answers  TTFT {ttft} alone; usage {usage}; {scale.tokens_per_word:.2f} tokens a word, "
        f"{scale.overhead_tokens:.0f} for the template",
        *(f"warning  {warning}" for warning in found.warnings),
    ]
