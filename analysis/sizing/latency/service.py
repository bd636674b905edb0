"""Builds the service to simulate from a planned deployment and a workload. Knows no objective."""

import random

import numpy as np

from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.deployment.pool import PoolBand
from analysis.sizing.workload import PlannedWorkload
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service
from loadtest.model.step_time import PredictedStepTime, SpeedBands, predict_step_time, speed_bands
from loadtest.simulator.engine.config import EngineConfig

PAUSE_DRAWS = 2000
"""Number of think times that are drawn."""
ENGINE_BLOCK_TOKENS = 16
"""Tokens of a simulated block where the layers of the model hold blocks in different ways."""


def planned_step_time(deployment: PlannedDeployment, *, kv_bytes_per_token: float) -> PredictedStepTime:
    """Predicts the step time of a deployment, with the times of the run that calibrates it, if any.

    kv_bytes_per_token: bytes that one GPU reads in a step for each token in the KV cache.
    """
    steps = predict_step_time(
        deployment.shape,
        deployment.gpu,
        dtype=deployment.dtype,
        tp=deployment.tp,
        version=deployment.version,
        enforce_eager=deployment.enforce_eager,
        kv_bytes_per_token=kv_bytes_per_token,
        placement=deployment.experts,
    )
    factor = deployment.calibration.times if deployment.calibration else None
    return steps.times(factor) if factor else steps


def planned_bands(deployment: PlannedDeployment) -> SpeedBands:
    """Returns the bands of the deployment's predicted times."""
    calibrated = deployment.calibration is not None and deployment.calibration.times is not None
    return speed_bands(deployment.gpu, calibrated=calibrated)


def planned_service(
    deployment: PlannedDeployment, workload: PlannedWorkload, steps: PredictedStepTime, band: PoolBand
) -> Service:
    """Builds the service: one engine with the estimated pool, and users who chat as the workload says."""
    rng = random.Random(0)
    pauses_s = [max(workload.think.draw(rng), CLIENT_TURNAROUND_S) for _ in range(PAUSE_DRAWS)]
    shares = workload.turns > 1 or workload.shared_prefix_tokens > 0
    block, blocks = _engine_pool(deployment, workload, band)
    return Service(
        engine=EngineConfig(
            num_gpu_blocks=blocks,
            block_size=block,
            max_model_len=deployment.max_model_len,
            step_base_s=steps.fixed_s,
            step_time=steps,
            max_num_seqs=deployment.max_num_seqs,
            max_num_batched_tokens=max(deployment.max_num_batched_tokens, deployment.max_num_seqs),
            enable_prefix_caching=shares,
        ),
        chatting=ChatBehaviour(
            conversations=workload.conversations,
            pauses_s=np.array(pauses_s),
            shared_prefix_tokens=workload.shared_prefix_tokens,
        ),
        overhead_s=steps.outside_s(float(workload.prompt.mean())),
    )


def _engine_pool(deployment: PlannedDeployment, workload: PlannedWorkload, band: PoolBand) -> tuple[int, int]:
    """Returns the tokens of a block of the simulated engine, and the number of blocks with the null block.

    The engine holds blocks as full attention does. For other layouts it gets as many blocks as hold the same
    number of requests of the workload on average.
    """
    layout, blocks = band.layout, band.blocks[1]
    if layout.uniform:
        return layout.block_size, blocks
    held = workload.mean_held_tokens / ENGINE_BLOCK_TOKENS + 0.5
    requests = blocks / workload.mean_blocks(layout)
    least = deployment.max_model_len // ENGINE_BLOCK_TOKENS + 2
    return ENGINE_BLOCK_TOKENS, max(round(requests * held), least)
