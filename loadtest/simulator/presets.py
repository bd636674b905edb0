"""Deployments to simulate: a model's architecture, a GPU's data sheet, and step times predicted from both.

`loadtest.model.step_time` predicts the step times, as for `analysis.sizing`. None was measured for a preset.
"""

from dataclasses import dataclass

from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.gpus import A10G, H100, L4, T4, Gpu
from loadtest.model.kv_cache import kv_layout
from loadtest.model.memory import MemoryBudget, divide_budget
from loadtest.model.startup import CURRENT_VERSION, startup_overheads
from loadtest.model.step_time import predict_step_time
from loadtest.model.weights import rotary_bytes, weights_bytes
from loadtest.simulator.engine.config import EngineConfig

# Architectures: config.json of each model, without keys that do not affect memory.
_QWEN3_1_7B = parse_config(
    {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
)
_QWEN15_1_8B = parse_config(
    {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
)
_LLAMA31_8B = parse_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One model on one GPU, with the flags of `vllm serve`."""

    name: str
    model: str
    """Name of the served model."""
    shape: ModelShape
    gpu: Gpu
    max_model_len: int
    dtype: str = "bfloat16"
    thinks: bool = False
    """Whether the model can reason before it answers."""
    # Defaults of vLLM 0.32's server for GPUs with less than 70 GiB.
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    gpu_memory_utilization: float = 0.92
    block_size: int = 16
    num_gpu_blocks_override: int | None = None

    def pool(self) -> MemoryBudget:
        """Returns how vLLM would divide the GPU's memory, including the size of the KV-cache pool. Ignores
        `num_gpu_blocks_override`."""
        overheads = startup_overheads(
            self.shape,
            self.gpu,
            version=CURRENT_VERSION,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            dtype=self.dtype,
        )
        return divide_budget(
            kv_layout(self.shape, dtype=self.dtype, block_size=self.block_size),
            vram_bytes=self.gpu.vram_bytes,
            gpu_memory_utilization=self.gpu_memory_utilization,
            weights=weights_bytes(self.shape, dtype=self.dtype) + rotary_bytes(self.shape, dtype=self.dtype),
            activation=overheads.activation,
            cuda_graphs=overheads.cuda_graphs,
            non_torch=overheads.non_torch,
        )

    def engine_config(
        self,
        *,
        enable_prefix_caching: bool = True,
        async_scheduling: bool = False,
        max_num_queued_reqs: int | None = None,
        max_num_queued_tokens: int | None = None,
        jitter_cv: float = 0.0,
        seed: int = 0,
    ) -> EngineConfig:
        """Builds the configuration of the engine. If the KV-cache pool cannot hold a request of
        `max_model_len`, `max_model_len` is lowered, as with vLLM's `--max-model-len auto`."""
        pool = self.pool()
        blocks = self.num_gpu_blocks_override or pool.num_gpu_blocks
        steps = predict_step_time(
            self.shape,
            self.gpu,
            dtype=self.dtype,
            version=CURRENT_VERSION,
            kv_bytes_per_token=pool.bytes_per_block / pool.block_size,
        )
        return EngineConfig(
            num_gpu_blocks=blocks,
            max_model_len=min(self.max_model_len, (blocks - 1) * self.block_size),
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            async_scheduling=async_scheduling,
            max_num_queued_reqs=max_num_queued_reqs,
            max_num_queued_tokens=max_num_queued_tokens,
            jitter_cv=jitter_cv,
            seed=seed,
            step_base_s=steps.decode_s(1, 0),
            step_time=steps,
        )


PRESETS = {
    preset.name: preset
    for preset in (
        # A T4 has no bfloat16. The contexts are those of the published comparison.
        Preset(
            name="qwen3-1.7b-t4",
            model="Qwen3-1.7B",
            shape=_QWEN3_1_7B,
            gpu=T4,
            dtype="float16",
            max_model_len=32768,
            thinks=True,
        ),
        Preset(
            name="qwen1.5-1.8b-t4",
            model="Qwen1.5-1.8B-Chat",
            shape=_QWEN15_1_8B,
            gpu=T4,
            dtype="float16",
            max_model_len=8192,
        ),
        Preset(
            name="qwen3-1.7b-l4",
            model="Qwen3-1.7B",
            shape=_QWEN3_1_7B,
            gpu=L4,
            max_model_len=32768,
            thinks=True,
        ),
        Preset(
            name="llama-3.1-8b-a10g",
            model="Llama-3.1-8B-Instruct",
            shape=_LLAMA31_8B,
            gpu=A10G,
            max_model_len=16384,
        ),
        Preset(
            name="llama-3.1-8b-h100",
            model="Llama-3.1-8B-Instruct",
            shape=_LLAMA31_8B,
            gpu=H100,
            max_model_len=131072,
            # Defaults of vLLM 0.32's server for GPUs with 70 GiB or more.
            max_num_seqs=1024,
            max_num_batched_tokens=8192,
        ),
    )
}
DEFAULT_PRESET = "qwen3-1.7b-t4"


def find_preset(name: str) -> Preset:
    """Finds a preset by name. Raises ValueError for an unknown name, with the known names in its message."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
