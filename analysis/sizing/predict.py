"""Turns the flags into the answer or a refusal.

Brings together deployment, calibration, context length and workload.
"""

from dataclasses import dataclass, replace

import msgspec

from analysis.answers.sizing import Sizing
from analysis.sizing.answer import refuse_sizing, size_deployment
from analysis.sizing.deployment.planned import PlannedDeployment, StartupCalibration
from analysis.sizing.deployment.pool import longest_context, pool_band
from analysis.sizing.deployment.startup_log import (
    StartupLog,
    as_started,
    calibration_of,
    read_startup_log,
    startup_of_run,
)
from analysis.sizing.flags import SizingFlags, gpu_of_flags, plan_deployment, read_shape
from analysis.sizing.step_times import measured_times
from analysis.sizing.workload import PlannedWorkload, draw_workload
from loadtest.errors import InputError
from loadtest.units import GIB

QUANTISED_NAMES = ("fp8", "awq", "gptq", "int8", "int4", "nvfp4", "w8a8", "w4a16")
SAME_SIZE = 0.03
"""Share by which two memory sizes of one card, or two sizes of one model's weights, may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPlan:
    """A deployment that would start, and the workload, cut to its context length."""

    deployment: PlannedDeployment
    workload: PlannedWorkload
    notes: list[str]
    """Warnings to show before the others."""


class DoesNotFitError(Exception):
    """The deployment would not start; the message says why."""

    def __init__(self, deployment: PlannedDeployment, reason: str) -> None:
        super().__init__(reason)
        self.deployment = deployment


def predict(flags: SizingFlags) -> Sizing:
    """Returns the answer or the refusal for these flags, with the workload that they state.

    Raises InputError for input that cannot be read, is not supported, or is contradictory.
    """
    return msgspec.structs.replace(_predicted(flags), workload=flags.workload)


def _predicted(flags: SizingFlags) -> Sizing:
    try:
        plan = fitted_plan(flags)
    except DoesNotFitError as refusal:
        return refuse_sizing(refusal.deployment, str(refusal))
    return size_deployment(
        plan.deployment,
        plan.workload,
        quantization=flags.quantization,
        notes=plan.notes,
        at_users=flags.workload.at_users,
        at_rate=flags.workload.at_rate,
    )


def fitted_plan(flags: SizingFlags) -> FittedPlan:
    """Plans deployment and workload for these flags; lowers the model's own context until it fits.

    Raises DoesNotFitError if the deployment would not start, and InputError like `predict`.
    """
    stated = flags.workload
    shape = read_shape(flags.config, flags.quantization)
    gpu = gpu_of_flags(flags)
    log = _startup_log(flags)
    deployment = plan_deployment(flags, shape, gpu, started=log.version if log else None)
    notes = _notes(flags, deployment, log)
    if log is not None:
        deployment = _calibrated(flags, deployment, log, notes)
    try:
        band = pool_band(deployment)
    except ValueError as problem:
        raise DoesNotFitError(deployment, str(problem)) from None
    longest = longest_context(deployment, band.blocks[1])
    if longest < deployment.max_model_len:
        if flags.max_model_len is not None or longest < 2:
            raise DoesNotFitError(
                deployment,
                f"vLLM would not start: the KV pool holds no request of {deployment.max_model_len:,} tokens, "
                f"at most one of {longest:,}. Lower --max-model-len.",
            )
        notes.append(
            f"The model's own context of {deployment.max_model_len:,} tokens does not fit the KV pool, and "
            f"vLLM would not start with it: the answer is for --max-model-len {longest:,}."
        )
        deployment = replace(deployment, max_model_len=longest)
    workload = draw_workload(stated.user_classes, slo=stated.slo, max_model_len=deployment.max_model_len)
    return FittedPlan(deployment=deployment, workload=workload, notes=notes)


def _startup_log(flags: SizingFlags) -> StartupLog | None:
    if flags.vllm_log is not None:
        return read_startup_log(flags.vllm_log)
    return startup_of_run(flags.calibrate) if flags.calibrate is not None else None


def _notes(flags: SizingFlags, deployment: PlannedDeployment, log: StartupLog | None) -> list[str]:
    notes = []
    name = flags.config.name.lower()
    if deployment.shape.quantisation is None and any(word in name for word in QUANTISED_NAMES):
        notes.append(
            f"{flags.config.name} sounds quantised, but neither it nor a hf_quant_config.json beside it says "
            "so: the answer is for 16 bits. Put that file beside it, or give --quantization."
        )
    if deployment.kv_dtype != flags.kv_cache_dtype:
        notes.append(
            "The checkpoint has scales for an FP8 KV cache, which vLLM then uses: the answer is for FP8."
        )
    if deployment.speculation is not None:
        notes.append(
            "The draft is counted in weights and KV cache. Latency is that without speculation: what drafts "
            "save depends on how many of their tokens are accepted."
        )
    if deployment.experts.data_parallel > 1:
        notes.append(
            "The engines of one server divide the experts and step together: they are taken as equally busy, "
            "and the links between them as those within an engine. No measurement of this was at hand."
        )
    if flags.kv_offloading_size is not None:
        notes.append(
            f"{flags.kv_offloading_size:g} GiB of CPU memory keep evicted KV blocks: a preempted request or "
            "a conversation's history comes back without being computed again. The pool on the GPU, and so "
            "the users in flight, stay the same."
        )
    if log is not None and log.version is not None and log.version[:2] != deployment.version[:2]:
        notes.append("The start-up that calibrates was of another version of vLLM than the answer is for.")
    return notes


def _calibrated(
    flags: SizingFlags, deployment: PlannedDeployment, log: StartupLog, notes: list[str]
) -> PlannedDeployment:
    """Returns the deployment with its predicted memory corrected by a start-up, and its times by a run.

    notes: gets why a run does not correct the times. Raises InputError if the start-up was on another card.
    Raises it also if the start-up was of another model and --calibrate-config is not given.
    """
    if log.vram_bytes is not None:
        if abs(log.vram_bytes / deployment.gpu.vram_bytes - 1) > SAME_SIZE:
            raise InputError(
                f"{log.source} is of a card with {log.vram_bytes / GIB:.2f} GiB, not of a "
                f"{deployment.gpu.name}: calibrate with a start-up on the same card."
            )
        gpu = replace(deployment.gpu, vram_bytes=log.vram_bytes, vram_sd_bytes=0.005 * GIB)
        deployment = replace(deployment, gpu=gpu)
    shape, same_model = deployment.shape, True
    if flags.calibrate_config is not None:
        shape = read_shape(flags.calibrate_config, log.quantization)
        same_model = flags.calibrate_config.read_bytes() == flags.config.read_bytes()
    started = as_started(deployment, log, shape)
    weights = log.weights_bytes
    if flags.calibrate_config is None and weights and abs(weights / started.weights() - 1) > SAME_SIZE:
        raise InputError(
            f"{log.source} loaded {weights / GIB:.2f} GiB of weights, this model has "
            f"{started.weights() / GIB:.2f}: name the other model's config.json with --calibrate-config."
        )
    calibration = calibration_of(started, log, same_model=same_model)
    if flags.calibrate is not None:
        calibration = replace(calibration, times=_times_factor(flags, started, calibration, notes))
    return replace(deployment, calibration=calibration, flashinfer=started.flashinfer)


def _times_factor(
    flags: SizingFlags, started: PlannedDeployment, calibration: StartupCalibration, notes: list[str]
) -> float | None:
    """Returns the factor on predicted times that the run of --calibrate shows; None, with a note, if none."""
    assert flags.calibrate is not None
    if not calibration.same_model:
        notes.append(
            "The run that calibrates was of another model: its pool is taken over, not its times, because "
            "kernels differ from model to model."
        )
        return None
    measured = measured_times(flags.calibrate, replace(started, calibration=calibration), flags.workload.slo)
    if measured.factor is None:
        notes.append(
            f"Times are those predicted: {calibration.source} does not show its own, because "
            f"{measured.why_not}."
        )
    return measured.factor
