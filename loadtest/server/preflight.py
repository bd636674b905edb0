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
from loadtest.record import NO_METRICS, GpuInfo, RequestRecord, ServerInfo
from loadtest.server.endpoints import choose_model, list_models, listed_context, server_version
from loadtest.server.gpus import choose_gpus
from loadtest.server.probe import Prober
from loadtest.server.scrape import MetricsFinding, Scraper
from loadtest.server.vllm import read_server_info, read_server_samples
from loadtest.settings import Settings
from loadtest.workload.classes import ClassPlan
from loadtest.workload.prompts import PromptScale, read_prompts

FEW_TOKENS = 0.75
"""If the server's counter grew by less than this share of the test requests' tokens, the metrics do not
belong to the only server behind the address."""


class Preflight(msgspec.Struct, kw_only=True, frozen=True):
    """What is known about the server before the first recorded request."""

    model: str
    server: ServerInfo
    gpu: GpuInfo | None
    gpu_words: str
    """Why the GPUs of this machine do not count as the server's; empty if there is nothing to say."""
    scale: PromptScale
    sends_usage: bool
    metrics: str
    """In words: where the metrics are, or what was found where they were looked for."""
    has_metrics: bool
    ttft_s: float | None
    """Seconds to the first token of a test request alone on the server; None if its answer was empty."""
    takes_cache_salt: bool
    """Whether own prompts are kept apart from those of earlier runs in the server's prefix cache."""
    warnings: list[str]


async def inspect_server(target: Target, settings: Settings, *, nonce: str) -> tuple[Preflight, Scraper]:
    """Collects what a run needs to know about the server and warms the server up. Returns this knowledge and
    the open scraper, which the caller closes. Raises InputError if the server or a setting cannot be used."""
    session = open_session(headers=target.headers, tls=target.tls())
    scraper: Scraper | None = None
    try:
        listed = await list_models(session, target, needed=settings.model is None)
        model, entry, warnings = choose_model(listed, settings.model)
        gpus = await choose_gpus(settings.gpu_metrics, url=target.api_url)
        scraper = Scraper(target, model=model, gpus=gpus.source)
        findings = await scraper.find()
        warnings += _foreign_load_warnings(findings, model)
        prober = Prober(
            session, target, settings, model=model, listed=[entry["id"] for entry in listed], nonce=nonce
        )
        context = await listed_context(session, target, model=model, entry=entry, listed=listed)
        if context is None:
            await prober.wake()
            context = await prober.find_context()
        _check_prompts(settings)
        before = await _tokens_counted(scraper)
        context, scale, alone = await prober.measure_context_and_scale(context)
        _refuse_impossible_lengths(settings, context)
        warnings += _clipping_warnings(settings, context)
        sends_texts = settings.prompts is not None or settings.sessions is not None
        takes_cache_salt = sends_texts and await prober.accepts_cache_salt(entry.get("owned_by"))
        warnings += await prober.warm_up()
        if not scraper.found:  # a server that was loading may have metrics now
            findings = await scraper.find()
        version = await server_version(session, target)
        warnings += _metrics_warnings(findings)
        if before is not None:
            warnings += await _replica_warnings(scraper, prober.answered, tokens_before=before)
        warnings += _usage_warnings(alone)
        await scraper.sample()  # a DCGM exporter names its GPUs in the first sample
    except BaseException:
        if scraper is not None:
            await scraper.close()
        raise
    finally:
        await session.close()
    page = next((finding.page for finding in findings if finding.page is not None), None)
    preflight = Preflight(
        model=model,
        server=_server_info(entry, version, context, page, settings),
        gpu=scraper.gpu,
        gpu_words=gpus.words,
        scale=scale,
        sends_usage=alone.output_tokens is not None,
        metrics="; ".join(finding.words for finding in findings) or "not asked (off)",
        takes_cache_salt=takes_cache_salt,
        has_metrics=page is not None,
        ttft_s=alone.chunk_s[0] - (alone.sent_s or 0) if alone.chunk_s else None,
        warnings=warnings,
    )
    return preflight, scraper


def _usage_warnings(alone: RequestRecord) -> list[str]:
    if alone.output_tokens is not None:
        return []
    return [
        "The server sends no usage: token counts, TPOT and the memory model are missing, and prompts and "
        "histories are sized by a guess of 1.3 tokens per word."
    ]


def _metrics_warnings(findings: list[MetricsFinding]) -> list[str]:
    missing = [finding.words for finding in findings if finding.page is None]
    if not missing:
        return []
    if len(missing) < len(findings):
        return [
            f"{len(missing)} of {len(findings)} addresses in --metrics-url have no vLLM metrics now "
            f"({'; '.join(missing)}): sums over the replicas are incomplete."
        ]
    return [f"{NO_METRICS}{'; '.join(missing)}): the memory wall cannot be measured, the latency walls can."]


def _foreign_load_warnings(findings: list[MetricsFinding], model: str) -> list[str]:
    pages = [finding.page for finding in findings if finding.page is not None]
    rows = [row for page in pages for row in read_server_samples(page, model=model, unix_s=0)]
    busy = sum((row.running or 0) + (row.waiting or 0) for row in rows)
    if not busy:
        return []
    return [f"{busy:g} requests of other clients were on the server before the test began."]


async def _tokens_counted(scraper: Scraper) -> float | None:
    """Returns the tokens that all replicas have generated; None if one does not say."""
    counts = [row.generation_tokens_total for row in await scraper.sample()]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


async def _replica_warnings(
    scraper: Scraper, answered: list[RequestRecord], *, tokens_before: float
) -> list[str]:
    """Returns a warning if the metrics are those of one among several replicas behind the address. Waits for
    the server's counters."""
    advice = (
        "Name the metrics of every replica: --metrics-url http://REPLICA1/metrics,http://REPLICA2/metrics"
    )
    await scraper.settle()
    if hidden := await scraper.find_hidden_replicas():
        return [
            f"Several replicas answer at {', '.join(hidden)}, each with figures of its own: what is read "
            f"there jumps between them. {advice}."
        ]
    after = await _tokens_counted(scraper)
    asked = sum(record.output_tokens or 0 for record in answered)
    if after is None or asked == 0 or after - tokens_before >= FEW_TOKENS * asked:
        return []
    return [
        f"The metrics counted {max(0, after - tokens_before):g} of the {asked} tokens of the test "
        "requests: they belong to one of several replicas behind the address, or to another server. "
        f"{advice}."
    ]


def _server_info(
    entry: dict[str, Any],
    version: str | None,
    context: int | None,
    page: str | None,
    settings: Settings,
) -> ServerInfo:
    info = read_server_info(page) if page else ServerInfo()
    owner = entry.get("owned_by")
    changes: dict[str, Any] = {
        "engine": owner if isinstance(owner, str) else None,
        "version": version,
        "max_model_len": context,
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
    for each in settings.classes:
        plan = ClassPlan.of(each)
        shortest = [
            lengths.a if lengths.kind in ("fixed", "uniform") else lengths.mean
            for lengths in (plan.context_tokens, plan.prompt_tokens, plan.output_tokens)
        ]
        if each.shared_tokens + sum(shortest) <= max_model_len:
            continue
        if plan.name is None:
            asked = f"--prompt-tokens {each.prompt_tokens} with --output-tokens {each.output_tokens} does"
        else:
            asked = (
                f"{settings.workload}: class '{plan.name}': a first request of {each.shared_tokens} shared, "
                f"{each.context_tokens} context and {each.prompt_tokens} prompt tokens with an answer of "
                f"{each.output_tokens} does"
            )
        raise InputError(f"{asked} not fit: the model's context is {max_model_len} tokens.")


def _clipping_warnings(settings: Settings, max_model_len: int | None) -> list[str]:
    """Returns a warning for each class of which at least 1 % of 500 drawn first requests, with their answers,
    exceed the model's context."""
    if max_model_len is None or not _draws_lengths(settings):
        return []
    warnings = []
    for plan in map(ClassPlan.of, settings.classes):
        rng = random.Random(settings.seed)
        draws = 500
        clipped = sum(sum(plan.draw_first_request(rng)) > max_model_len for _ in range(draws))
        if clipped >= 0.01 * draws:
            whose = "" if plan.name is None else f" of class '{plan.name}'"
            warnings.append(
                f"About {clipped / draws:.0%} of the drawn lengths{whose} do not fit the model's context of "
                f"{max_model_len} tokens and will be clipped."
            )
    return warnings


def _draws_lengths(settings: Settings) -> bool:
    """Whether the lengths of prompts are drawn. False if a file of prompts or sessions or a trace is given,
    because these have lengths of their own."""
    return settings.prompts is None and settings.trace is None and settings.sessions is None


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
    gpu += f" ({preflight.gpu_words})" if preflight.gpu_words else ""
    usage = "sent" if preflight.sends_usage else "NOT sent"
    ttft = f"{preflight.ttft_s * 1000:.0f} ms" if preflight.ttft_s is not None else "no content"
    scale = preflight.scale
    return [
        f"server   {target.shown} ({engine}){simulated}",
        f"model    {preflight.model}, context {context}",
        f"KV pool  {pool}; GPU {gpu}",
        f"metrics  {preflight.metrics}",
        f"answers  TTFT {ttft} alone; usage {usage}; {scale.tokens_per_word:.2f} tokens per word, "
        f"{scale.overhead_tokens:.0f} for the template",
        *(f"warning  {warning}" for warning in preflight.warnings),
    ]
