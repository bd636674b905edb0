"""Inspects the server before a run and checks the settings against it: model, KV-cache pool, lengths,
metrics, and load of other clients. Writes no rows; knows no Locust."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec

from loadtest.client.target import Target
from loadtest.client.transport import open_session
from loadtest.errors import InputError
from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import kv_bytes_per_token
from loadtest.record import GpuInfo, ServerInfo
from loadtest.server.endpoints import choose_model, is_local, list_models, server_version
from loadtest.server.gpu_sensors import choose_gpus
from loadtest.server.probe import measure_prompt_scale, warm_up
from loadtest.server.scrape import Scraper
from loadtest.server.vllm import read_server_info, read_server_samples
from loadtest.settings import Settings
from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import PromptScale, read_prompts


class Preflight(msgspec.Struct, kw_only=True, frozen=True):
    """What is known about the server before the first recorded request."""

    model: str
    server: ServerInfo
    gpu: GpuInfo | None
    scale: PromptScale
    sends_usage: bool
    has_metrics: bool
    ttft_s: float | None
    """Seconds to the first token of a test request alone on the server; None if its answer was empty."""
    warnings: list[str]


async def inspect_server(target: Target, settings: Settings, *, nonce: str) -> tuple[Preflight, Scraper]:
    """Collects what a run needs to know about the server and warms the server up. Returns this knowledge and
    the open scraper, which the caller closes. Raises InputError if the server or a setting cannot be used."""
    session = open_session(headers=target.headers, tls=target.tls())
    scraper: Scraper | None = None
    try:
        listed, version = await list_models(session, target), await server_version(session, target)
        model, entry = choose_model(listed, settings.model)
        gpus = choose_gpus(settings.gpu_metrics, server_is_local=await is_local(target.api_url))
        scraper = Scraper(target, model=model, gpus=gpus)
        page = await scraper.find()
        warnings = [*_metrics_warnings(target, page), *_foreign_load_warnings(page, model)]
        server = _server_info(entry, version, page, settings)
        _refuse_impossible_lengths(settings, server.max_model_len)
        _check_prompts(settings)
        warnings += _clipping_warnings(settings, server.max_model_len)
        scale, alone = await measure_prompt_scale(
            session, target, settings, model=model, server=server, nonce=nonce
        )
        sends_usage = alone.output_tokens is not None
        if not sends_usage:
            warnings.append(
                "The server sends no usage: token counts, TPOT and the memory model are missing, and "
                "prompts are sized by a guess of 1.3 tokens per word."
            )
        await warm_up(session, target, settings, model=model, scale=scale, nonce=nonce)
        await scraper.settle()
        await scraper.sample()  # a DCGM exporter names its GPUs in the first sample
    except BaseException:
        if scraper is not None:
            await scraper.close()
        raise
    finally:
        await session.close()
    preflight = Preflight(
        model=model,
        server=server,
        gpu=scraper.gpu,
        scale=scale,
        sends_usage=sends_usage,
        has_metrics=page is not None,
        ttft_s=alone.chunk_s[0] - (alone.sent_s or 0) if alone.chunk_s else None,
        warnings=warnings,
    )
    return preflight, scraper


def _metrics_warnings(target: Target, page: str | None) -> list[str]:
    if page is not None or not target.metrics_urls:
        return []
    return ["No vLLM metrics at /metrics: the memory wall cannot be measured, the latency walls can."]


def _foreign_load_warnings(page: str | None, model: str) -> list[str]:
    rows = read_server_samples(page, model=model, unix_s=0) if page else []
    busy = sum((row.running or 0) + (row.waiting or 0) for row in rows)
    if not busy:
        return []
    return [f"{busy:g} requests of other clients were on the server before the test began."]


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
    """Returns the bytes that the keys and values of one token take, on all GPUs together. None if the server
    quantises its KV cache, or if the attention of some layers is windowed or chunked. Raises InputError if
    `config_file` is not usable."""
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
        lengths.a if lengths.kind in ("fixed", "uniform") else lengths.mean
        for lengths in map(Distribution.parse, (settings.prompt_tokens, settings.output_tokens))
    ]
    if sum(shortest) > max_model_len:
        raise InputError(
            f"--prompt-tokens {settings.prompt_tokens} with --output-tokens {settings.output_tokens} does "
            f"not fit: the model's context is {max_model_len} tokens."
        )


def _clipping_warnings(settings: Settings, max_model_len: int | None) -> list[str]:
    """Returns a warning if at least 1 % of 500 drawn pairs of lengths (prompt, answer) exceed the model's
    context."""
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
    """Whether the lengths of prompts are drawn. False if a file of prompts or a trace is given, because these
    have lengths of their own."""
    return settings.prompts is None and settings.trace is None


def _check_prompts(settings: Settings) -> None:
    if settings.prompts is not None:
        try:
            read_prompts(settings.prompts)
        except (ValueError, OSError) as error:
            raise InputError(f"--prompts: {error}") from None


def preflight_summary(preflight: Preflight, target: Target) -> list[str]:
    """Returns the lines of text that are shown to the user before the load begins."""
    server = preflight.server
    engine = " ".join(filter(None, [server.engine, server.version])) or "unknown engine"
    simulated = f" - SIMULATED, preset {server.simulated}" if server.simulated else ""
    pool = "unknown"
    if server.num_gpu_blocks and server.block_size:
        tokens = (server.num_gpu_blocks - 1) * server.block_size
        pool = f"{tokens:,} tokens ({server.num_gpu_blocks - 1:,} blocks of {server.block_size})"
    context = f"{server.max_model_len:,} tokens" if server.max_model_len else "unknown"
    gpu = f"{preflight.gpu.count} x {preflight.gpu.name or 'unknown'}" if preflight.gpu else "unknown"
    usage = "sent" if preflight.sends_usage else "NOT sent"
    ttft = f"{preflight.ttft_s * 1000:.0f} ms" if preflight.ttft_s is not None else "no content"
    scale = preflight.scale
    return [
        f"server   {target.shown} ({engine}){simulated}",
        f"model    {preflight.model}, context {context}",
        f"KV pool  {pool}; metrics {'found' if preflight.has_metrics else 'not found'}; GPU {gpu}",
        f"answers  TTFT {ttft} alone; usage {usage}; {scale.tokens_per_word:.2f} tokens per word, "
        f"{scale.overhead_tokens:.0f} for the template",
        *(f"warning  {warning}" for warning in preflight.warnings),
    ]
