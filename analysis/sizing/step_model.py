"""How long a step takes, from data sheet and config: a roofline with stated fractions. Knows no users."""

import math
from dataclasses import dataclass

from analysis.sizing.deployment import PlannedDeployment
from loadtest.model.weights import step_bytes
from loadtest.simulator.config import EngineConfig
from loadtest.simulator.presets import BANDWIDTH_FRACTION, FLOPS_FRACTION, SAMPLING_PASSES_BYTES

HOST_S = 1e-3
"""What a step takes beside the GPU's memory traffic: launching and scheduling that nothing hides. Assumed;
published single-stream rates of models below 2 B leave 1 to 3 ms."""
EAGER_LAYER_S = 80e-6
"""Launching a layer's kernels one by one, without CUDA graphs: about ten at 8 us each. Assumed."""
ALL_REDUCE_S = {True: 10e-6, False: 40e-6}
"""Of one layer's half on two or more GPUs, with NVLink and over PCIe. Assumed."""
SPEED_BAND = 1.3
"""Steps may be so many times slower or faster (90 %): from 0.62 to 0.9 of the bandwidth around 0.75, and
host and collectives are assumed."""
EIGHT_BITS = {"fp8", "fbgemm_fp8", "modelopt", "compressed-tensors"}
"""Methods whose products run in 8 bits where the card has them and the weights are stored so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepModel:
    """tau = base(n) + per_sequence * n + per_kv_token * tokens + per_prefill_token * prefill."""

    dense_s: float
    """Weights that every step reads, host and collectives."""
    experts_s: float
    """All experts' weights read once."""
    chosen_share: float
    """Of the experts, what one token touches."""
    per_sequence_s: float
    per_kv_token_s: float
    per_prefill_token_s: float

    def base_s(self, sequences: float) -> float:
        """Experts that at least one of so many tokens touches, were they chosen evenly."""
        untouched = math.exp(max(sequences, 1.0) * math.log1p(-min(self.chosen_share, 1.0 - 1e-9)))
        return self.dense_s + self.experts_s * (1.0 - untouched)

    def engine(self, deployment: PlannedDeployment, sequences: float) -> EngineConfig:
        """An engine whose pool never binds: what latency alone allows near so many sequences."""
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
    """kv_bytes_per_token: that a token in the cache makes one GPU read, a step."""
    shape, gpu = deployment.shape, deployment.gpu
    bandwidth = gpu.bandwidth_bytes_s * BANDWIDTH_FRACTION
    every = step_bytes(shape, dtype=deployment.dtype, tp=deployment.tp)
    one = step_bytes(shape, dtype=deployment.dtype, tp=deployment.tp, sequences=1.0)
    chosen = _chosen_share(deployment)
    experts = (every - one) / (1.0 - chosen) if chosen < 1.0 else 0.0
    host = HOST_S + (EAGER_LAYER_S * shape.num_layers if deployment.enforce_eager else 0.0)
    collectives = 2 * shape.num_layers * ALL_REDUCE_S[gpu.big_buffers] if deployment.tp > 1 else 0.0
    flops = gpu.flops_s
    if shape.quantisation is not None and shape.quantisation.method in EIGHT_BITS and gpu.flops_8bit_s:
        flops = gpu.flops_8bit_s
    return StepModel(
        dense_s=(every - experts) / bandwidth + host + collectives,
        experts_s=experts / bandwidth,
        chosen_share=chosen,
        per_sequence_s=SAMPLING_PASSES_BYTES * shape.vocab_size / bandwidth,
        per_kv_token_s=kv_bytes_per_token / bandwidth,
        per_prefill_token_s=2 * shape.active_parameters / (flops * FLOPS_FRACTION * deployment.tp),
    )


def _chosen_share(deployment: PlannedDeployment) -> float:
    """Of the experts of a layer, what one token chooses; 1 for a dense model."""
    counts = [one.count for layer in deployment.shape.layers for one in layer.tensors if one.expert]
    return deployment.shape.experts_per_token / max(counts) if counts else 1.0
