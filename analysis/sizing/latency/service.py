"""Builds the service to simulate from a planned deployment and a workload. Knows no objective."""

import random

import numpy as np

from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.deployment.pool import PoolBand
from analysis.sizing.latency.pace import Pace
from analysis.sizing.workload import PlannedClass, PlannedWorkload, planned_block_distribution
from analysis.statistics.arrays import Floats
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service, mixed
from analysis.virtual.user_classes import chatting_class
from loadtest.model.step_time import PredictedStepTime, SpeedBands, predict_step_time, speed_bands
from loadtest.simulator.engine.config import EngineConfig
from loadtest.workload.distributions import Distribution

PAUSE_DRAWS = 2000
"""Number of pauses that are drawn."""
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
    deployment: PlannedDeployment,
    workload: PlannedWorkload,
    steps: PredictedStepTime,
    pace: Pace,
    band: PoolBand,
) -> Service:
    """Builds the service: one engine with the estimated pool, and users who chat as the workload says."""
    block, blocks = _engine_pool(deployment, workload, band)
    rates = workload.user_shares * pace.requests_each(1.0)
    prompt = float(np.average([one.prompt.mean() for one in workload.classes], weights=rates))
    return Service(
        engine=EngineConfig(
            num_gpu_blocks=blocks,
            block_size=block,
            max_model_len=deployment.max_model_len,
            step_base_s=steps.fixed_s,
            step_time=steps,
            max_num_seqs=deployment.max_num_seqs,
            max_num_batched_tokens=max(deployment.max_num_batched_tokens, deployment.max_num_seqs),
            enable_prefix_caching=workload.caches_prefixes,
        ),
        chatting=_chatting(workload),
        overhead_s=steps.outside_s(prompt),
    )


def _chatting(workload: PlannedWorkload) -> ChatBehaviour:
    if not workload.is_mix:
        return _chatting_of_class(workload.classes[0])
    return mixed(
        [
            chatting_class(
                one.name, one.weight, slo=slo, run_slo=workload.slo, chatting=_chatting_of_class(one)
            )
            for one, slo in zip(workload.classes, workload.slos, strict=True)
        ]
    )


def _chatting_of_class(users: PlannedClass) -> ChatBehaviour:
    with_tools = bool(users.tool_follows.any())
    return ChatBehaviour(
        conversations=users.conversations,
        pauses_s=_pauses_s(users.think),
        shared_prefix_tokens=users.shared_tokens,
        shared_texts=users.shared_texts,
        tool_follows=users.tools_of_conversations if with_tools else None,
        tool_pauses_s=_pauses_s(users.tool) if with_tools else None,
    )


def _pauses_s(pause: Distribution) -> Floats:
    rng = random.Random(0)
    return np.array([max(pause.draw(rng), CLIENT_TURNAROUND_S) for _ in range(PAUSE_DRAWS)])


def _engine_pool(deployment: PlannedDeployment, workload: PlannedWorkload, band: PoolBand) -> tuple[int, int]:
    """Returns the tokens of a block of the simulated engine, and the number of blocks with the null block.

    The engine holds blocks as full attention does. For other layouts it gets as many blocks as hold the same
    number of requests of the workload on average.
    """
    layout, blocks = band.layout, band.blocks[1]
    if layout.uniform:
        return layout.block_size, blocks
    held = workload.mean_held_tokens / ENGINE_BLOCK_TOKENS + 0.5
    means = [planned_block_distribution(one, layout).mean for one in workload.classes]
    requests = blocks / float(workload.user_shares @ means)
    least = deployment.max_model_len // ENGINE_BLOCK_TOKENS + 2
    return ENGINE_BLOCK_TOKENS, max(round(requests * held), least)
