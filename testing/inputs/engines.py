"""Builds engines and requests whose schedules can be computed by hand."""

from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import EngineTrace, simulate

SMALL_ENGINE = EngineConfig(
    num_gpu_blocks=65,
    block_size=4,
    max_model_len=128,
    max_num_seqs=16,
    max_num_batched_tokens=64,
    step_base_s=1.0,
    step_per_seq_s=0.01,
    prefill_per_token_s=0.01,
)
"""An engine with a pool of 64 blocks of four tokens and steps of about a second."""


def engine_config(**changes: object) -> EngineConfig:
    """Builds an engine with steps of one second and blocks of four tokens; `changes` override its fields."""
    values: dict[str, object] = {
        "num_gpu_blocks": 101,
        "max_model_len": 16,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "step_base_s": 1.0,
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


def engine_request(prompt: int, output: int, hashes: tuple[int, ...] | None = None) -> Request:
    return Request(prompt_tokens=prompt, output_tokens=output, block_hashes=hashes)


def engine_run(config: EngineConfig, *arrivals: tuple[float, Request]) -> EngineTrace:
    return simulate(config, arrivals)
