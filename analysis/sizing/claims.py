"""Claimed figures against physics: weights and KV cache must fit, bytes must be read, FLOP must be done.

A claim is impossible only where arithmetic alone forbids it; what depends on things it does not state cannot
be told.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import msgspec

from analysis.answers.sizing import CheckedClaim, ClaimVerdict
from analysis.sizing.deployment import PlannedDeployment
from analysis.sizing.pool import PoolBand, pool_band, pool_tokens
from loadtest.errors import InputError
from loadtest.model.architectures import parse_config
from loadtest.model.cards import find_gpu
from loadtest.model.startup import CURRENT_VERSION, default_batch_limits, default_utilization, parse_version
from loadtest.model.weights import step_bytes
from loadtest.units import GIB

GB = 1e9
ROUNDING = 0.02
"""Published figures are rounded: this much is forgiven."""


class Claim(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One [[claim]] of the file: how a model was served, and what was claimed of it."""

    model: str
    config: str
    """Its config.json, relative to the file."""
    gpu: str
    gpus: int = 1
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    vllm_version: str | None = None
    prompt_tokens: int | None = None
    """Of the requests that were timed."""
    tokens_per_request: int | None = None
    """Prompt and answer, of the requests that were counted; without it the context stands for them."""
    context: int | None = None
    peak_vram_gb: float | None = None
    max_concurrency: int | None = None
    decode_tok_s: float | None = None
    """Of one stream."""
    ttft_ms: float | None = None


class ClaimFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    claim: list[Claim]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedDeployment:
    """A claim and the deployment that it is about."""

    claim: Claim
    deployment: PlannedDeployment
    band: PoolBand

    @property
    def weights(self) -> int:
        return self.deployment.weights()

    def requests(self, tokens: int) -> tuple[float, float, float]:
        """Of so many tokens that the pool holds at once: lower end, estimate, upper end."""
        need = self.band.layout.blocks(tokens)
        low, middle, high = (max(blocks - 1, 0) / need for blocks in self.band.blocks)
        return low, middle, high

    @property
    def request_bytes(self) -> float:
        """KV cache of the smallest request that could have been served: one block."""
        return float(self.band.layout.bytes_per_block)

    def tokens_each(self, requests: int) -> int:
        """The longest requests of which the pool's estimate holds so many."""
        low, high = 1, self.deployment.shape.max_position_embeddings
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.requests(middle)[1] >= requests else (low, middle - 1)
        return low


def read_claims(path: Path) -> list[ClaimedDeployment]:
    """Raises InputError for a file, a config or a card that cannot be used."""
    try:
        claims = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ClaimFile).claim
    except OSError as problem:
        raise InputError(f"--claim {path} cannot be read ({problem.strerror}).") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as problem:
        raise InputError(f"--claim {path}: {problem}.") from None
    return [_case(claim, path) for claim in claims]


def _case(claim: Claim, path: Path) -> ClaimedDeployment:
    config = path.parent / claim.config
    try:
        shape = parse_config(
            msgspec.json.decode(config.read_bytes(), type=dict[str, object]), quantization=claim.quantization
        )
        gpu = find_gpu(claim.gpu)
        version = parse_version(claim.vllm_version) if claim.vllm_version else CURRENT_VERSION
        tokens, seqs = default_batch_limits(gpu)
        deployment = PlannedDeployment(
            model=claim.model,
            shape=shape,
            gpu=gpu,
            version=version,
            utilization=claim.gpu_memory_utilization or default_utilization(version),
            max_model_len=claim.context or shape.max_position_embeddings,
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


def check_claims(cases: Sequence[ClaimedDeployment]) -> list[CheckedClaim]:
    """Every figure of every claim, then pairs of claims whose figures contradict each other."""
    found = []
    for case in cases:
        for check in (_peak_vram, _context, _concurrency, _decode, _ttft):
            verdict = check(case)
            if verdict is not None:
                found.append(verdict)
    for one, other in combinations(cases, 2):
        if one.deployment.gpu == other.deployment.gpu:
            found += [pair for check in (_one_context, _order) if (pair := check(one, other)) is not None]
    return found


def _peak_vram(case: ClaimedDeployment) -> CheckedClaim | None:
    """Weights and at least a block of KV cache must be there; vLLM holds its whole budget from the start."""
    claimed = case.claim.peak_vram_gb
    if claimed is None:
        return None
    weights, budget = case.weights, case.band.pool.budget_bytes
    streams = case.claim.max_concurrency or 1
    least = weights + streams * case.request_bytes
    needs = (
        f"the weights alone are {weights / GIB:.2f} GiB ({weights / GB:.2f} GB), and {streams} requests need "
        f"{streams * case.request_bytes / 2**20:.0f} MiB of KV cache for their first block"
    )
    held = f"vLLM holds its budget of {budget / GIB:.1f} GiB from the start, whatever is used of it"
    if claimed * GIB < least * (1 - ROUNDING / 10):
        text = f"{needs}: {least / GIB:.2f} GiB before anything is computed, and {held}."
        bare = min(abs(claimed * unit / weights - 1) for unit in (GB, GIB))
        if bare < 0.05:
            text += " The claimed figure is the bare weights."
        return _checked(case, "peak VRAM", f"{claimed:g} GB", "impossible", text)
    if claimed * GIB < 0.95 * budget:
        bare = claimed * GIB / weights - 1
        text = f"{needs}; {held}. A peak of {claimed:g} is not what nvidia-smi shows"
        if bare < 0.1:
            text += f": it is the weights and {100 * bare:.0f} %"
        return _checked(case, "peak VRAM", f"{claimed:g} GB", "impossible", f"{text}.")
    if claimed * GB > case.deployment.gpu.vram_bytes * (1 + ROUNDING):
        text = f"the card has {case.deployment.gpu.vram_bytes / GIB:.1f} GiB."
        return _checked(case, "peak VRAM", f"{claimed:g} GB", "impossible", text)
    return _checked(case, "peak VRAM", f"{claimed:g} GB", "consistent", f"{held}.")


def _context(case: ClaimedDeployment) -> CheckedClaim | None:
    context = case.claim.context
    if context is None:
        return None
    most, (_, fit, _) = case.deployment.shape.max_position_embeddings, case.requests(context)
    text = f"the model was made for {most:,} tokens, and the pool holds {fit:.1f} requests of {context:,}."
    verdict: ClaimVerdict = "consistent" if context <= most and fit >= 1 else "impossible"
    return _checked(case, "context", f"{context:,}", verdict, text)


def _concurrency(case: ClaimedDeployment) -> CheckedClaim | None:
    """As the number that VRAM allows, which depends on how long the requests are."""
    claimed, tokens = case.claim.max_concurrency, case.claim.tokens_per_request or case.claim.context
    if claimed is None:
        return None
    low, _, high = pool_tokens(case.deployment, case.band)
    pool = f"the pool holds {low:,} to {high:,} tokens"
    each = case.tokens_each(claimed)
    if tokens is None:
        text = f"{pool}: {claimed} at once would be requests of about {each:,} tokens each."
        return _checked(case, "maximum concurrency", str(claimed), "cannot be told", text)
    few, fit, many = case.requests(tokens)
    text = (
        f"{pool}: {few:.1f} to {many:.1f} requests of {tokens:,} tokens. {claimed} is the limit for requests "
        f"of about {each:,} tokens."
    )
    if few - 1 < claimed <= many:
        return _checked(case, "maximum concurrency", str(claimed), "consistent", text)
    if case.claim.tokens_per_request is None and claimed > fit:
        text += f" At the full context of {tokens:,} it does not fit; at shorter requests it is no limit."
        return _checked(case, "maximum concurrency", str(claimed), "impossible", text)
    if claimed < few:
        text += " VRAM holds more, so it is not what limits."
    return _checked(case, "maximum concurrency", str(claimed), "impossible", text)


def _decode(case: ClaimedDeployment) -> CheckedClaim | None:
    """Every token of a single stream reads all weights that it touches once."""
    claimed = case.claim.decode_tok_s
    if claimed is None:
        return None
    ceiling = _ceiling(case)
    share = claimed / ceiling
    text = (
        f"a step reads {_read(case) / GB:.2f} GB through "
        f"{case.deployment.gpu.bandwidth_bytes_s / GB:,.0f} GB/s: at most {ceiling:.0f} tokens/s for "
        f"one stream; the claim is {100 * share:.0f} % of it."
    )
    if share > 1 + ROUNDING:
        return _checked(case, "decode rate", f"{claimed:g} tokens/s", "impossible", text)
    return _checked(case, "decode rate", f"{claimed:g} tokens/s", "consistent", text)


def _ceiling(case: ClaimedDeployment) -> float:
    """Tokens a second of one stream with an empty cache, at the data sheet's bandwidth."""
    return case.deployment.gpu.bandwidth_bytes_s / _read(case)


def _read(case: ClaimedDeployment) -> float:
    """Bytes that a decode step of one stream reads on each GPU: of experts, the chosen ones."""
    found = case.deployment
    return step_bytes(found.shape, dtype=found.dtype, tp=found.tp, sequences=1.0)


def _ttft(case: ClaimedDeployment) -> CheckedClaim | None:
    """Two FLOP for each active parameter and prompt token, at the data sheet's rate."""
    claimed = case.claim.ttft_ms
    if claimed is None:
        return None
    gpu, shape = case.deployment.gpu, case.deployment.shape
    per_token_s = 2 * shape.active_parameters / (gpu.flops_s * case.deployment.tp)
    step_s = 1 / _ceiling(case)
    most = int(max(claimed / 1e3 - step_s, 0) / per_token_s)
    at_full = (
        f"{gpu.flops_s / 1e12:.0f} TFLOP/s fill {1e-3 / per_token_s:,.1f} prompt tokens a millisecond at most"
    )
    tokens = case.claim.prompt_tokens
    if tokens is None:
        text = f"the prompt's length is not stated; {at_full}, so prompts up to {most:,} tokens could be."
        return _checked(case, "time to first token", f"{claimed:g} ms", "cannot be told", text)
    verdict: ClaimVerdict = "consistent" if tokens <= most else "impossible"
    text = f"{at_full}: {tokens:,} tokens take {1e3 * (tokens * per_token_s + step_s):.0f} ms or more."
    return _checked(case, "time to first token", f"{claimed:g} ms", verdict, text)


def _one_context(one: ClaimedDeployment, other: ClaimedDeployment) -> CheckedClaim | None:
    """Two maximum concurrencies as VRAM limits at one length of requests: n requests fit means that the pool
    holds n to n + 1 of them, so the pools' ratio is bounded."""
    a, b = one.claim.max_concurrency, other.claim.max_concurrency
    if a is None or b is None:
        return None
    ratios = [
        one.requests(tokens)[end] / other.requests(tokens)[end] for tokens in (1024, 8192) for end in range(3)
    ]
    least, most = a / (b + 1), (a + 1) / b
    possible = max(ratios) > least and min(ratios) < most
    text = (
        f"At one length of requests the pools hold {min(ratios):.2f} to {max(ratios):.2f} times as many "
        f"of {one.claim.model} as of {other.claim.model}; {a} against {b} needs a factor between {least:.2f} "
        f"and {most:.2f}."
    )
    return CheckedClaim(
        model=f"{one.claim.model}, {other.claim.model}",
        figure="maximum concurrency, both",
        claimed=f"{a} against {b}",
        verdict="consistent" if possible else "impossible",
        why=text if possible else f"{text} They are not VRAM limits at any one context length.",
    )


def _order(one: ClaimedDeployment, other: ClaimedDeployment) -> CheckedClaim | None:
    """The faster claim should have fewer bytes to read."""
    a, b = one.claim.decode_tok_s, other.claim.decode_tok_s
    if a is None or b is None or (a > b) == (_ceiling(one) > _ceiling(other)):
        return None
    return CheckedClaim(
        model=f"{one.claim.model}, {other.claim.model}",
        figure="order of decode rates",
        claimed=f"{a:g} against {b:g} tokens/s",
        verdict="cannot be told",
        why=f"Memory bandwidth says the opposite at short contexts: at most {_ceiling(one):.0f} against "
        f"{_ceiling(other):.0f}. It needs {100 * a / _ceiling(one):.0f} % of the bandwidth in one case and "
        f"{100 * b / _ceiling(other):.0f} % in the other.",
    )


def _checked(
    case: ClaimedDeployment, figure: str, claimed: str, verdict: ClaimVerdict, why: str
) -> CheckedClaim:
    return CheckedClaim(
        model=case.claim.model,
        figure=figure,
        claimed=claimed,
        verdict=verdict,
        why=why if why.startswith("vLLM") else why[0].upper() + why[1:],
    )
