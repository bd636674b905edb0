"""Predicts the time of an engine step from config.json, a GPU's data sheet and fitted shares of it. Knows no
requests and no clock."""

import functools
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu
from loadtest.model.layers.tensors import AttentionCache, ExpertPlacement
from loadtest.model.startup import VllmVersion
from loadtest.model.weights import WITHOUT_DATA_PARALLEL, step_bytes

FITTED_FILE = Path(__file__).with_name("step_efficiency.toml")
"""The fitted shares, written by `python -m benchmarks gpu --fit`."""

EAGER_LAYER_S = 80e-6
"""Time to launch a layer's kernels without CUDA graphs, seconds: about ten at 8 us each. Assumed."""
V1_FROM: VllmVersion = (0, 8, 0)
"""First version of vLLM whose default engine is V1."""
LINK_SHARE = 0.6
"""Share of a link's bandwidth that a ring all-reduce of some MB reaches. Assumed."""
PCIE_BYTES_S = 25e9
"""Bytes a second in one direction between GPUs without NVLink: PCIe 4.0 x16 as measured by all-reduce tests,
of 31.5e9 on paper."""
FP8_METHODS = frozenset({"fp8", "fbgemm_fp8", "modelopt", "compressed-tensors", "quark"})
"""Quantisations whose products run in 8 bits, if the GPU can. Others are unpacked to 16 bits."""
OVERLAP = 4.0
"""Exponent that joins the time of memory and of products to that of a step: about the larger of both, and
1.19 times as long where both are equal, because kernels overlap them imperfectly. Assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEfficiency:
    """What GPUs reach of their data sheets, and what a step costs besides; fitted to measurements."""

    bandwidth: float
    """Share of the memory bandwidth at which weights are read."""
    bandwidth_turing: float
    """Factor on `bandwidth` for GPUs of this generation."""
    bandwidth_ampere: float
    bandwidth_ada: float
    bandwidth_hopper: float
    bandwidth_blackwell: float
    bandwidth_cdna: float
    expert_bandwidth: float
    """Factor on the bandwidth at which the weights of experts are read."""
    expert_bandwidth_4bit: float
    """The same for experts of 4 bits, which kernels unpack while they read."""
    cache_bandwidth: float
    """Share of the memory bandwidth at which attention reads keys and values."""
    products: float
    """Share of the dense FLOP/s that matrix products of prompts reach."""
    products_8bit: float
    """Factor on `products` of the FLOP/s in 8 bits."""
    products_4bit: float
    """Factor on `products` of weights in 4 bits, which are unpacked to 16."""
    products_experts: float
    """Factor on `products` for experts, whose matrices are smaller."""
    products_cdna: float
    """Factor on `products` for AMD's GPUs."""
    attention: float
    """Share of the dense FLOP/s that the attention of prompts reaches."""
    host_s: float
    """Time of a step that overlaps with nothing, seconds: scheduling, and the gap to the next step."""
    host_v0_s: float
    """The same, on top, for vLLM before V1_FROM, seconds."""
    layer_s: float
    """Time of a layer that does not depend on its size, seconds: starts and ends of its kernels."""
    expert_layer_s: float
    """The same, on top, for a layer with experts, seconds: routing, sorting of tokens, more kernels."""
    all_reduce_s: float
    """Time of an all-reduce of little data over NVLink, seconds. A layer has two."""
    all_reduce_pcie_s: float
    """The same over PCIe, seconds."""
    sequence_s: float
    """Time that each sequence adds to a step, seconds: scheduling, sampling, detokenising."""
    logit_bytes: float
    """Bytes that sampling reads and writes for each logit."""
    request_s: float
    """Time of a request outside the engine, seconds: HTTP, chat template, the way of the first token."""
    request_token_s: float
    """The same for each token of its prompt, seconds: tokenising."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedBands:
    """Factors on predicted times, lower and upper end of 90 %, from deployments that the fit did not see."""

    ttft: tuple[float, float]
    tpot: tuple[float, float]
    e2e: tuple[float, float]
    known: bool
    """Whether the fit holds measurements on this GPU. If not, the bands are those of GPUs left out."""


def speed_bands(gpu: Gpu, *, calibrated: bool = False) -> SpeedBands:
    """Returns the bands of predicted times on this GPU.

    calibrated: whether the times were multiplied by what other loads of the same deployment showed.
    """
    table = _fitted_table()
    known = gpu.name in table["cards"]
    suffix = f"{'calibrated_' if calibrated else ''}{'known' if known else 'unknown'}"
    ends = {name: table["bands"][f"{name}_{suffix}"] for name in ("ttft", "tpot", "e2e")}
    # An estimate lies in its own band, whatever the data say.
    bands = {name: (min(float(low), 1.0), max(float(high), 1.0)) for name, (low, high) in ends.items()}
    return SpeedBands(**bands, known=known)


@functools.cache
def fitted_efficiency() -> StepEfficiency:
    """Returns the shares of FITTED_FILE."""
    table = _fitted_table()["efficiency"]
    return StepEfficiency(**{field.name: float(table[field.name]) for field in fields(StepEfficiency)})


@functools.cache
def _fitted_table() -> dict[str, Any]:
    return tomllib.loads(FITTED_FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedStepTime:
    """The time of a step of one deployment. Each field is a time in seconds, or a number without unit.

    Weights are read while products are computed, so their time is about the larger of both. Reading the KV
    cache, the attention of prompts, collectives, the host and sampling come on top.
    """

    dense_s: float
    """Reading the weights that every step needs."""
    experts_s: float
    """Reading the weights of all experts once."""
    chosen_share: float
    """Share of the experts that one token chooses; 1 for a dense model."""
    token_s: float
    """Products of one token."""
    kv_token_s: float
    """Reading one token of the KV cache."""
    pair_s: float
    """Attention of one prompt token to one token before it."""
    fixed_s: float
    """Host, layers, and latency of collectives."""
    collective_token_s: float
    """Collectives of one token."""
    sequence_s: float
    """Host and sampling of one sequence."""
    request_s: float
    """Time of a request outside the engine."""
    request_token_s: float
    """The same for each token of its prompt."""
    engines: int = 1
    """Data-parallel engines that divide the experts. They step together, each with as many tokens."""

    def seconds(
        self, *, decodes: float, prefills: float, kv_tokens: float, prefill_tokens: float, pairs: float
    ) -> float:
        """Returns the time of one step, seconds.

        decodes, prefills: sequences that decode, and prompts of which a part is computed. kv_tokens: tokens
        of these sequences in the KV cache. prefill_tokens: prompt tokens computed in the step. pairs: sum
        over these of the tokens that each of them attends to.
        """
        tokens = decodes + prefill_tokens
        return (
            self._joined_s(tokens, tokens if prefill_tokens else captured_size(tokens))
            + self.kv_token_s * kv_tokens
            + self.pair_s * pairs
            + self.fixed_s
            + self.collective_token_s * tokens
            + self.sequence_s * (decodes + prefills)
        )

    def decode_steps(self, decodes: int) -> Callable[[float], float]:
        """Returns `seconds` of steps that only decode so many sequences, as a function of their KV tokens.

        It is many times as fast, and exactly equal.
        """
        joined_s = self._joined_s(decodes, captured_size(decodes))
        kv_token_s, fixed_s = self.kv_token_s, self.fixed_s
        collectives_s, sequences_s = self.collective_token_s * decodes, self.sequence_s * decodes
        return lambda kv_tokens: joined_s + kv_token_s * kv_tokens + fixed_s + collectives_s + sequences_s

    def _joined_s(self, tokens: float, computed: float) -> float:
        """Returns the time of weights and products together, seconds."""
        memory_s, products_s = self.weights_s(tokens), self.token_s * computed
        joined_s: float = (memory_s**OVERLAP + products_s**OVERLAP) ** (1.0 / OVERLAP)
        return joined_s

    def weights_s(self, tokens: float) -> float:
        """Returns the time to read the weights that a step of so many tokens needs, seconds."""
        if not self.experts_s:
            return self.dense_s
        untouched = math.exp(
            max(tokens, 1.0) * self.engines * math.log1p(-min(self.chosen_share, 1.0 - 1e-9))
        )
        return self.dense_s + self.experts_s * (1.0 - untouched)

    def scaled(
        self, *, memory: float = 1.0, products: float = 1.0, cache: float = 1.0
    ) -> "PredictedStepTime":
        """Returns the step time with some of its parts multiplied: moving memory, computing products, and, on
        top of `memory`, reading the KV cache."""
        return replace(
            self,
            dense_s=self.dense_s * memory,
            experts_s=self.experts_s * memory,
            kv_token_s=self.kv_token_s * memory * cache,
            sequence_s=self.sequence_s * memory,
            token_s=self.token_s * products,
            pair_s=self.pair_s * products,
        )

    def times(self, factor: float) -> "PredictedStepTime":
        """Returns the step time with every time multiplied by a factor."""
        changed = {
            field.name: factor * getattr(self, field.name)
            for field in fields(self)
            if field.name.endswith("_s")
        }
        return replace(self, **changed)

    def decode_s(self, sequences: float, context: float) -> float:
        """Returns the time of a step that only decodes, seconds. context: tokens of each sequence in the KV
        cache."""
        return self.seconds(
            decodes=sequences, prefills=0, kv_tokens=sequences * context, prefill_tokens=0, pairs=0
        )

    def prompt_s(self, tokens: float, *, after: float = 0.0) -> float:
        """Returns the time that a prompt adds to steps that are bound by products, seconds. after: tokens
        before it that are in the cache."""
        return tokens * (self.token_s + self.collective_token_s + self.pair_s * (after + tokens / 2))

    def outside_s(self, prompt_tokens: float) -> float:
        """Returns the time of a request outside the engine, seconds."""
        return self.request_s + self.request_token_s * prompt_tokens


def captured_size(sequences: float) -> float:
    """Returns the size of the CUDA graph that vLLM runs for a decode step: 1, 2, 4, then multiples of 8 up to
    512; larger steps have none."""
    if sequences > 512:
        return sequences
    for size in (1.0, 2.0, 4.0):
        if sequences <= size:
            return size
    return 8.0 * math.ceil(sequences / 8.0)


def predict_step_time(
    shape: ModelShape,
    gpu: Gpu,
    *,
    dtype: str | None = None,
    tp: int = 1,
    version: VllmVersion = V1_FROM,
    enforce_eager: bool = False,
    kv_bytes_per_token: float,
    efficiency: StepEfficiency | None = None,
    placement: ExpertPlacement = WITHOUT_DATA_PARALLEL,
) -> PredictedStepTime:
    """Predicts the step time of a deployment.

    kv_bytes_per_token: bytes that one GPU reads in a step for each token in the KV cache. efficiency: the
    shares to use; by default those that were fitted.
    """
    share = efficiency or fitted_efficiency()
    bandwidth = gpu.bandwidth_bytes_s * _generation_factor(share, gpu)
    weights_s = 1.0 / (bandwidth * share.bandwidth)
    all_bytes = step_bytes(shape, dtype=dtype, tp=tp, experts=placement)
    chosen = _chosen_share(shape)
    experts = 0.0
    if chosen < 1.0:
        alone = 1.0 / placement.data_parallel
        one_token = step_bytes(shape, dtype=dtype, tp=tp, sequences=alone, experts=placement)
        experts = (all_bytes - one_token) / (1.0 - chosen)
    method = shape.quantisation.method if shape.quantisation is not None else None
    layers = shape.num_layers
    fixed_s = share.host_s + layers * share.layer_s
    fixed_s += share.host_v0_s if version < V1_FROM else 0.0
    fixed_s += layers * share.expert_layer_s if chosen < 1.0 else 0.0
    fixed_s += layers * EAGER_LAYER_S if enforce_eager else 0.0
    collectives_s, collective_token_s = _collectives(share, shape, gpu, tp, placement)
    fixed_s += collectives_s
    packed = method is not None and method not in FP8_METHODS
    return PredictedStepTime(
        dense_s=(all_bytes - experts) * weights_s,
        experts_s=experts * weights_s / (share.expert_bandwidth_4bit if packed else share.expert_bandwidth),
        chosen_share=chosen,
        token_s=2 * shape.active_parameters / (_products_flops_s(share, shape, gpu, method) * tp),
        kv_token_s=kv_bytes_per_token / (bandwidth * share.cache_bandwidth),
        pair_s=_pair_flops(shape) / (tp * gpu.flops_s * share.attention),
        fixed_s=fixed_s,
        collective_token_s=collective_token_s,
        sequence_s=share.sequence_s + share.logit_bytes * shape.vocab_size / bandwidth,
        request_s=share.request_s,
        request_token_s=share.request_token_s,
        engines=placement.data_parallel,
    )


def _collectives(
    share: StepEfficiency, shape: ModelShape, gpu: Gpu, tp: int, placement: ExpertPlacement
) -> tuple[float, float]:
    """Returns the time of a step's collectives, seconds: that of little data, and that of each token.

    A layer has two all-reduces over the GPUs of an engine. Data-parallel engines gather the tokens of all
    before the experts and scatter the sums after them (vLLM's allgather_reducescatter).
    """
    link = gpu.nvlink_bytes_s * LINK_SHARE if gpu.nvlink_bytes_s else PCIE_BYTES_S
    latency_s = share.all_reduce_s if gpu.nvlink_bytes_s else share.all_reduce_pcie_s
    row_bytes, others = shape.hidden_size * 2, placement.data_parallel - 1  # 2 bytes an element
    fixed_s = token_s = 0.0
    if tp > 1:  # a ring moves each byte 2 (tp - 1) / tp times
        fixed_s += 2 * shape.num_layers * latency_s
        token_s += 2 * shape.num_layers * row_bytes * 2 * (tp - 1) / tp / link
    if others:
        routed = sum(any(tensor.expert for tensor in layer.tensors) for layer in shape.layers)
        fixed_s += 2 * routed * latency_s
        token_s += 2 * routed * row_bytes * others / tp / link
    return fixed_s, token_s


def _generation_factor(share: StepEfficiency, gpu: Gpu) -> float:
    """Returns the factor on bandwidth of the GPU's generation; 1 for one that is not known."""
    return float(getattr(share, f"bandwidth_{gpu.generation}", 1.0))


def _products_flops_s(share: StepEfficiency, shape: ModelShape, gpu: Gpu, method: str | None) -> float:
    """Returns the FLOP/s that the products of prompts reach on one GPU."""
    flops_s = gpu.flops_s * share.products
    if method in FP8_METHODS and gpu.flops_8bit_s:
        flops_s = gpu.flops_8bit_s * share.products * share.products_8bit
    elif method is not None:
        flops_s *= share.products_4bit
    if shape.experts_per_token:
        flops_s *= share.products_experts
    return flops_s * (share.products_cdna if gpu.generation == "cdna" else 1.0)


def _pair_flops(shape: ModelShape) -> float:
    """Returns the FLOP of all layers for one prompt token that attends to one token: two products with a key
    and a value in each head. Layers with a window are left out, because their cost stays small."""
    caches = [cache for layer in shape.layers for cache in layer.caches if isinstance(cache, AttentionCache)]
    return float(sum(2 * shape.num_heads * cache.width for cache in caches if cache.kind in ("full", "mla")))


def _chosen_share(shape: ModelShape) -> float:
    """Returns the share of a layer's experts that one token chooses; 1 for a dense model."""
    counts = [tensor.count for layer in shape.layers for tensor in layer.tensors if tensor.expert]
    return shape.experts_per_token / max(counts) if counts else 1.0
