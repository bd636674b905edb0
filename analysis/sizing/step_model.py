"""Computes the time of an engine step from data sheet and config.json.

It is a roofline model: steps reach assumed fractions of the data sheet's bandwidth and FLOP/s.
"""

import math
from dataclasses import dataclass

from analysis.sizing.deployment.planned import PlannedDeployment
from loadtest.model.weights import step_bytes
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.presets import BANDWIDTH_FRACTION, FLOPS_FRACTION, SAMPLING_PASSES_BYTES

HOST_S = 1e-3
"""Launch and scheduling time of a step that does not overlap with memory traffic, seconds. Assumed: published
single-stream rates of models below 2 B parameters leave 1 to 3 ms."""
EAGER_LAYER_S = 80e-6
"""Time to launch a layer's kernels without CUDA graphs, seconds: about ten at 8 us each. Assumed."""
ALL_REDUCE_S = {True: 10e-6, False: 40e-6}
"""Assumed time of each of a layer's two all-reduces, s, by `Gpu.big_buffers`, which stands for NVLink."""
SPEED_BAND = 1.3
"""Factor by which steps may be slower or faster (90 %). A server may reach 0.62 to 0.9 of the data sheet's
bandwidth, 0.75 is assumed; the times of host and collectives are assumed too."""
EIGHT_BIT_METHODS = {"fp8", "fbgemm_fp8", "modelopt", "compressed-tensors"}
"""Quantisations whose matrix products run in 8 bits, if the card can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepModel:
    """Step time, seconds: base(n) + per_sequence * n + per_kv_token * tokens + per_prefill_token * prefill.

    n: sequences in the step. base(n): time that does not belong to a single sequence (`base_s`). tokens:
    tokens of the n sequences in the KV cache. prefill: prompt tokens computed in the step.
    """

    dense_s: float
    """Time to read the weights that every step needs, plus host and collectives, seconds."""
    experts_s: float
    """Time to read the weights of all experts once, seconds."""
    chosen_share: float
    """Share of the experts that one token chooses; 1 for a dense model."""
    per_sequence_s: float
    per_kv_token_s: float
    per_prefill_token_s: float

    def base_s(self, sequences: float) -> float:
        """Returns the part of the step time that all sequences share, seconds: weights, host and collectives.

        Only experts that at least one sequence chooses are read. All experts are assumed equally likely.
        """
        untouched = math.exp(max(sequences, 1.0) * math.log1p(-min(self.chosen_share, 1.0 - 1e-9)))
        return self.dense_s + self.experts_s * (1.0 - untouched)

    def engine(self, deployment: PlannedDeployment, sequences: float) -> EngineConfig:
        """Returns the settings of a simulated engine with an unlimited KV-cache pool.

        Its base step time is that of a step with `sequences` sequences.
        """
        length = deployment.max_model_len
        return EngineConfig(
            num_gpu_blocks=2 + (deployment.max_num_seqs + 1) * (length // 16 + 2),
            max_model_len=length,
            step_base_s=self.base_s(sequences),
            step_per_seq_s=self.per_sequence_s,
            step_per_kv_token_s=self.per_kv_token_s,
            prefill_per_token_s=self.per_prefill_token_s,
            max_num_seqs=deployment.max_num_seqs,
            max_num_batched_tokens=deployment.max_num_batched_tokens,
            enable_prefix_caching=False,
        )


def step_model(deployment: PlannedDeployment, *, kv_bytes_per_token: float) -> StepModel:
    """Builds the step model of a deployment.

    kv_bytes_per_token: bytes that one GPU reads in a step for each token in the KV cache.
    """
    shape, gpu = deployment.shape, deployment.gpu
    bandwidth = gpu.bandwidth_bytes_s * BANDWIDTH_FRACTION
    all_bytes = step_bytes(shape, dtype=deployment.dtype, tp=deployment.tp)
    single_bytes = step_bytes(shape, dtype=deployment.dtype, tp=deployment.tp, sequences=1.0)
    chosen = _chosen_share(deployment)
    experts = (all_bytes - single_bytes) / (1.0 - chosen) if chosen < 1.0 else 0.0
    host = HOST_S + (EAGER_LAYER_S * shape.num_layers if deployment.enforce_eager else 0.0)
    collectives = 2 * shape.num_layers * ALL_REDUCE_S[gpu.big_buffers] if deployment.tp > 1 else 0.0
    flops = gpu.flops_s
    if shape.quantisation is not None and shape.quantisation.method in EIGHT_BIT_METHODS and gpu.flops_8bit_s:
        flops = gpu.flops_8bit_s
    return StepModel(
        dense_s=(all_bytes - experts) / bandwidth + host + collectives,
        experts_s=experts / bandwidth,
        chosen_share=chosen,
        per_sequence_s=SAMPLING_PASSES_BYTES * shape.vocab_size / bandwidth,
        per_kv_token_s=kv_bytes_per_token / bandwidth,
        per_prefill_token_s=2 * shape.active_parameters / (flops * FLOPS_FRACTION * deployment.tp),
    )


def _chosen_share(deployment: PlannedDeployment) -> float:
    """Returns the share of a layer's experts that one token chooses; 1 for a dense model."""
    counts = [tensor.count for layer in deployment.shape.layers for tensor in layer.tensors if tensor.expert]
    return deployment.shape.experts_per_token / max(counts) if counts else 1.0
