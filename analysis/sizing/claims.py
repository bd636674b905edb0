"""Checks claimed figures against physics: does it fit in memory, and do bandwidth and FLOP/s allow the speed?

A claim is impossible only if arithmetic alone forbids it. If the result depends on something that the
claim does not state, the verdict is "cannot be told".
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import msgspec

from analysis.answers.sizing import CheckedClaim, ClaimVerdict
from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.deployment.pool import PoolBand, pool_band, pool_tokens
from loadtest.errors import InputError
from loadtest.model.architectures import parse_config
from loadtest.model.gpus import find_gpu
from loadtest.model.startup import CURRENT_VERSION, default_batch_limits, default_utilization, parse_version
from loadtest.model.weights import step_bytes
from loadtest.units import GIB

GB = 1e9
ROUNDING = 0.02
"""Share by which a published figure may be off because of rounding."""


class Claim(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One [[claim]] of the file: how a model was served, and the claimed figures; None: not stated."""

    model: str
    config: str
    """Path of the model's config.json, relative to the file of claims."""
    gpu: str
    gpus: int = 1
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    vllm_version: str | None = None
    prompt_tokens: int | None = None
    """Prompt tokens of the requests whose TTFT is claimed."""
    tokens_per_request: int | None = None
    """Prompt plus answer tokens of the requests in `max_concurrency`; None: `context` stands in."""
    context: int | None = None
    peak_vram_gb: float | None = None
    max_concurrency: int | None = None
    decode_tok_s: float | None = None
    """Decode rate of a single stream, tokens a second."""
    ttft_ms: float | None = None


class ClaimFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The content of a TOML file of claims."""

    claim: list[Claim]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedDeployment:
    """A claim, its deployment, and the KV pool of this deployment."""

    claim: Claim
    deployment: PlannedDeployment
    band: PoolBand

    @property
    def weights(self) -> int:
        """Size of the weights on one GPU, bytes."""
        return self.deployment.weights()

    def requests_held(self, tokens: int) -> tuple[float, float, float]:
        """Returns how many requests of `tokens` tokens the pool holds: lower end, estimate, upper end."""
        need = self.band.layout.blocks(tokens)
        low, middle, high = (max(blocks - 1, 0) / need for blocks in self.band.blocks)
        return low, middle, high

    @property
    def request_bytes(self) -> float:
        """Size of one KV block in bytes: the KV cache of the smallest possible request."""
        return float(self.band.layout.bytes_per_block)

    def longest_request(self, requests: int) -> int:
        """Returns the largest length, tokens, at which the estimated pool holds `requests` requests."""
        low, high = 1, self.deployment.shape.max_position_embeddings
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.requests_held(middle)[1] >= requests else (low, middle - 1)
        return low


def read_claims(path: Path) -> list[ClaimedDeployment]:
    """Reads the claims of a file. Raises InputError for a file, a config or a card that cannot be used."""
    try:
        claims = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ClaimFile).claim
    except OSError as problem:
        raise InputError(f"--claim {path} cannot be read ({problem.strerror}).") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as problem:
        raise InputError(f"--claim {path}: {problem}.") from None
    return [_claimed_deployment(claim, path) for claim in claims]


def _claimed_deployment(claim: Claim, path: Path) -> ClaimedDeployment:
    config = path.parent / claim.config
    try:
        shape = parse_config(
            msgspec.json.decode(config.read_bytes(), type=dict[str, object]), quantization=claim.quantization
        )
        gpu = find_gpu(claim.gpu)
        version = parse_version(claim.vllm_version) if claim.vllm_version else CURRENT_VERSION
        context = claim.context or shape.max_position_embeddings
        tokens, seqs = default_batch_limits(gpu, version=version, max_model_len=context)
        deployment = PlannedDeployment(
            model=claim.model,
            shape=shape,
            gpu=gpu,
            version=version,
            utilization=claim.gpu_memory_utilization or default_utilization(version),
            max_model_len=context,
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            dtype=claim.dtype or shape.dtype,
            kv_dtype=claim.kv_cache_dtype,
            tp=claim.gpus,
        )
        return ClaimedDeployment(claim=claim, deployment=deployment, band=pool_band(deployment))
    except OSError as problem:
        raise InputError(f"--claim: {config} cannot be read ({problem.strerror}).") from None
    except (msgspec.DecodeError, ValueError) as problem:
        raise InputError(f"--claim, {claim.model}: {problem}") from None


def check_claims(claims: Sequence[ClaimedDeployment]) -> list[CheckedClaim]:
    """Judges every figure of every claim, then pairs of claims about the same kind of card."""
    checked = [
        verdict
        for served in claims
        for check in (_peak_vram, _context, _concurrency, _decode_rate, _ttft)
        if (verdict := check(served)) is not None
    ]
    for first, second in combinations(claims, 2):
        if first.deployment.gpu == second.deployment.gpu:
            checked += [
                verdict
                for check_both in (_both_concurrencies, _order_of_decode_rates)
                if (verdict := check_both(first, second)) is not None
            ]
    return checked


def _peak_vram(served: ClaimedDeployment) -> CheckedClaim | None:
    """Judges the claimed peak VRAM.

    It cannot be less than the weights plus one KV block for each request. vLLM also takes its whole memory
    budget from the start.
    """
    claimed = served.claim.peak_vram_gb
    if claimed is None:
        return None
    weights, budget = served.weights, served.band.pool.budget_bytes
    streams = served.claim.max_concurrency or 1
    least = weights + streams * served.request_bytes
    needs = (
        f"the weights alone are {weights / GIB:.2f} GiB ({weights / GB:.2f} GB), and {streams} requests need "
        f"{streams * served.request_bytes / 2**20:.0f} MiB of KV cache for their first block"
    )
    held = f"vLLM holds its budget of {budget / GIB:.1f} GiB from the start, whatever is used of it"
    if claimed * GIB < least * (1 - ROUNDING / 10):
        text = f"{needs}: {least / GIB:.2f} GiB before anything is computed, and {held}."
        bare = min(abs(claimed * unit / weights - 1) for unit in (GB, GIB))
        if bare < 0.05:
            text += " The claimed figure is the bare weights."
        return _checked(served, "peak VRAM", f"{claimed:g} GB", "impossible", text)
    if claimed * GIB < 0.95 * budget:
        bare = claimed * GIB / weights - 1
        text = f"{needs}; {held}. A peak of {claimed:g} is not what nvidia-smi shows"
        if bare < 0.1:
            text += f": it is {100 * bare:.0f} % more than the weights"
        return _checked(served, "peak VRAM", f"{claimed:g} GB", "impossible", f"{text}.")
    if claimed * GB > served.deployment.gpu.vram_bytes * (1 + ROUNDING):
        text = f"the card has {served.deployment.gpu.vram_bytes / GIB:.1f} GiB."
        return _checked(served, "peak VRAM", f"{claimed:g} GB", "impossible", text)
    return _checked(served, "peak VRAM", f"{claimed:g} GB", "consistent", f"{held}.")


def _context(served: ClaimedDeployment) -> CheckedClaim | None:
    context = served.claim.context
    if context is None:
        return None
    most, (_, fit, _) = served.deployment.shape.max_position_embeddings, served.requests_held(context)
    text = (
        f"the model takes at most {most:,} tokens; the pool holds {fit:.1f} requests of {context:,} tokens."
    )
    verdict: ClaimVerdict = "consistent" if context <= most and fit >= 1 else "impossible"
    return _checked(served, "context", f"{context:,}", verdict, text)


def _concurrency(served: ClaimedDeployment) -> CheckedClaim | None:
    """Judges the claimed maximum concurrency: how many requests VRAM holds at once.

    The number depends on the length of the requests.
    """
    claimed, tokens = served.claim.max_concurrency, served.claim.tokens_per_request or served.claim.context
    if claimed is None:
        return None
    low, _, high = pool_tokens(served.deployment, served.band)
    pool = f"the pool holds {low:,} to {high:,} tokens"
    each = served.longest_request(claimed)
    if tokens is None:
        text = f"{pool}: {claimed} at once would be requests of about {each:,} tokens each."
        return _checked(served, "maximum concurrency", str(claimed), "cannot be told", text)
    few, fit, many = served.requests_held(tokens)
    text = (
        f"{pool}: {few:.1f} to {many:.1f} requests of {tokens:,} tokens. {claimed} is the limit for requests "
        f"of about {each:,} tokens."
    )
    if few - 1 < claimed <= many:
        return _checked(served, "maximum concurrency", str(claimed), "consistent", text)
    if served.claim.tokens_per_request is None and claimed > fit:
        text += (
            f" At the full context of {tokens:,} it does not fit; for shorter requests it is not the limit."
        )
        return _checked(served, "maximum concurrency", str(claimed), "impossible", text)
    if claimed < few:
        text += " VRAM holds more requests, so it is not what limits."
    return _checked(served, "maximum concurrency", str(claimed), "impossible", text)


def _decode_rate(served: ClaimedDeployment) -> CheckedClaim | None:
    """Judges the decode rate. Each token of a single stream needs a step, which reads the weights once."""
    claimed = served.claim.decode_tok_s
    if claimed is None:
        return None
    ceiling = _max_decode_tok_s(served)
    share = claimed / ceiling
    text = (
        f"a step reads {_step_bytes(served) / GB:.2f} GB through "
        f"{served.deployment.gpu.bandwidth_bytes_s / GB:,.0f} GB/s: at most {ceiling:.0f} tokens/s for "
        f"one stream; the claim is {100 * share:.0f} % of it."
    )
    if share > 1 + ROUNDING:
        return _checked(served, "decode rate", f"{claimed:g} tokens/s", "impossible", text)
    return _checked(served, "decode rate", f"{claimed:g} tokens/s", "consistent", text)


def _max_decode_tok_s(served: ClaimedDeployment) -> float:
    """Returns the highest possible decode rate, tokens a second.

    It holds for one stream with an empty KV cache at the bandwidth of the data sheet.
    """
    return served.deployment.gpu.bandwidth_bytes_s / _step_bytes(served)


def _step_bytes(served: ClaimedDeployment) -> float:
    """Returns the bytes that each GPU reads in a decode step of a single stream.

    Of the experts, only those that one token chooses are counted.
    """
    deployment = served.deployment
    return step_bytes(deployment.shape, dtype=deployment.dtype, tp=deployment.tp, sequences=1.0)


def _ttft(served: ClaimedDeployment) -> CheckedClaim | None:
    """Judges the claimed TTFT by the computing time of the prompt.

    Each prompt token takes 2 FLOP for each active parameter, at the FLOP/s of the data sheet.
    """
    claimed = served.claim.ttft_ms
    if claimed is None:
        return None
    gpu, shape = served.deployment.gpu, served.deployment.shape
    per_token_s = 2 * shape.active_parameters / (gpu.flops_s * served.deployment.tp)
    step_s = 1 / _max_decode_tok_s(served)
    most = int(max(claimed / 1e3 - step_s, 0) / per_token_s)
    rate = 1e-3 / per_token_s
    at_full = f"{gpu.flops_s / 1e12:.0f} TFLOP/s compute at most {rate:,.1f} prompt tokens a millisecond"
    tokens = served.claim.prompt_tokens
    if tokens is None:
        text = f"the prompt's length is not stated; {at_full}: possible for prompts of up to {most:,} tokens."
        return _checked(served, "time to first token", f"{claimed:g} ms", "cannot be told", text)
    verdict: ClaimVerdict = "consistent" if tokens <= most else "impossible"
    text = f"{at_full}: {tokens:,} tokens take {1e3 * (tokens * per_token_s + step_s):.0f} ms or more."
    return _checked(served, "time to first token", f"{claimed:g} ms", verdict, text)


def _both_concurrencies(first: ClaimedDeployment, second: ClaimedDeployment) -> CheckedClaim | None:
    """Judges whether two claimed maximum concurrencies can both be VRAM limits for requests of one length.

    A VRAM limit of n means that the KV-cache pool holds n requests but not n + 1. Two limits a and b thus
    need pools whose ratio, first to second, is between a / (b + 1) and (a + 1) / b. This range is compared
    with the computed pools. Returns None if one of the two concurrencies is not claimed.
    """
    a, b = first.claim.max_concurrency, second.claim.max_concurrency
    if a is None or b is None:
        return None
    ratios = [
        first.requests_held(tokens)[end] / second.requests_held(tokens)[end]
        for tokens in (1024, 8192)
        for end in range(3)
    ]
    least, most = a / (b + 1), (a + 1) / b
    possible = max(ratios) > least and min(ratios) < most
    models = f"{first.claim.model}, {second.claim.model}"
    text = (
        f"For requests of one length the pools hold {min(ratios):.2f} to {max(ratios):.2f} times as many "
        f"of {first.claim.model} as of {second.claim.model}; {a} against {b} needs a factor between "
        f"{least:.2f} and {most:.2f}."
    )
    return CheckedClaim(
        model=models,
        figure="maximum concurrency, both",
        claimed=f"{a} against {b}",
        verdict="consistent" if possible else "impossible",
        why=text if possible else f"{text} They are not VRAM limits for requests of any one length.",
    )


def _order_of_decode_rates(first: ClaimedDeployment, second: ClaimedDeployment) -> CheckedClaim | None:
    """Compares the order of two claimed decode rates with the order of the two bandwidth limits.

    None if the orders agree, or if one of the rates is not claimed.
    """
    a, b = first.claim.decode_tok_s, second.claim.decode_tok_s
    most_a, most_b = _max_decode_tok_s(first), _max_decode_tok_s(second)
    if a is None or b is None or (a > b) == (most_a > most_b):
        return None
    return CheckedClaim(
        model=f"{first.claim.model}, {second.claim.model}",
        figure="order of decode rates",
        claimed=f"{a:g} against {b:g} tokens/s",
        verdict="cannot be told",
        why=f"By memory bandwidth the order is the opposite at short contexts: at most {most_a:.0f} against "
        f"{most_b:.0f} tokens/s. The claims need {100 * a / most_a:.0f} % and "
        f"{100 * b / most_b:.0f} % of this bandwidth.",
    )


def _checked(
    served: ClaimedDeployment, figure: str, claimed: str, verdict: ClaimVerdict, why: str
) -> CheckedClaim:
    return CheckedClaim(
        model=served.claim.model,
        figure=figure,
        claimed=claimed,
        verdict=verdict,
        why=why if why.startswith("vLLM") else why[0].upper() + why[1:],
    )
