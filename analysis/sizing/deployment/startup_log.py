"""Reads memory figures of a vLLM start-up from its log or a run folder.

Computes from them the corrections of the predicted memory.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from analysis.reading.runs import find_runs
from analysis.sizing.deployment.planned import PlannedDeployment, StartupCalibration
from loadtest.errors import InputError
from loadtest.model.architectures import ModelShape
from loadtest.model.startup import VllmVersion, parse_version
from loadtest.units import GIB

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupLog:
    """Figures of one start-up; None: not logged. Bytes are those of the first GPU in the log."""

    source: str
    model: str | None = None
    version: VllmVersion | None = None
    tp: int | None = None
    pp: int | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    quantization: str | None = None
    enforce_eager: bool | None = None
    flashinfer: bool | None = None
    """Whether FlashInfer's sampler was used."""
    lora: bool | None = None
    """Whether there were buffers for LoRA adapters."""
    speculation: bool | None = None
    """Whether a draft was loaded."""
    utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    vram_bytes: int | None = None
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    blocks: int | None = None
    tokens: int | None = None
    activation_bytes: int | None = None
    non_torch_bytes: int | None = None
    cuda_graphs_bytes: int | None = None


def read_startup_log(path: Path) -> StartupLog:
    """Reads the figures of a start-up from a log of `vllm serve`.

    INFO lines suffice; DEBUG lines also tell how the overhead is divided. Raises InputError if the file
    cannot be read or says nothing about memory.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise InputError(f"--vllm-log {path} cannot be read ({problem.strerror}).") from None
    log = _LogText(text)
    consumed = log.gib(r"total consumed \(from mem_get_info\): ([\d.]+) ?GiB")
    other = log.gib(r"Total non KV cache memory: ([\d.]+) ?GiB")
    weights = log.gib(r"(?:Model loading|model weights) took ([\d.]+) ?G") or log.gib(
        r"weights memory: ([\d.]+) ?GiB"
    )
    # The second pattern is that of engine V0.
    activation = log.gib(r"(?:torch peak memory increase:|activation peak memory takes) ([\d.]+) ?GiB")
    non_torch = log.gib(r"(?:non-torch forward increase memory:|non_torch_memory takes) ([\d.]+) ?GiB")
    if consumed is not None and other is not None and weights is not None:  # logs of vLLM 0.2x
        activation, non_torch = other - consumed, max(consumed - weights, 0)
    startup = StartupLog(
        source=path.name,
        model=log.text(r"model='([^']+)'") or log.text(r"version [\d.]+\S*\s.*?model +(\S+)"),
        version=_version(log.text(r"LLM engine \(v([\d.]+)") or log.text(r"version (\d+\.\d+\.\d+)")),
        tp=log.integer(r"tensor_parallel_size=(\d+)"),
        pp=log.integer(r"pipeline_parallel_size=(\d+)"),
        dtype=log.text(r"dtype=torch\.(\w+)"),
        kv_dtype=log.text(r"kv_cache_dtype='?(\w+)"),
        quantization=_stated(log.text(r"[ (]quantization='?([\w-]+)")),
        enforce_eager=log.flag(r"enforce_eager=(True|False)"),
        flashinfer=_sampler(log),
        lora=log.flag(r"enable_lora'?[=:] ?(True|False)"),
        speculation=log.flag(r"speculative_config=(None|Speculative)", no="None"),
        utilization=log.number(r"gpu_memory_utilization'?(?:[=:] ?| \()([\d.]+)")
        or log.number(r"Requested memory: ([\d.]+) \(util\)"),
        max_model_len=log.integer(r"max_seq_len=(\d+)") or log.integer(r"[Uu]sing max model len (\d+)"),
        max_num_seqs=log.integer(r"max_num_seqs(?:'?[=:] ?| to )(\d+)"),
        max_num_batched_tokens=log.integer(r"max_num_batched_tokens(?:'?[=:] ?| to )(\d+)"),
        vram_bytes=log.gib(r"total_(?:gpu_)?memory[= (]+([\d.]+) ?GiB"),
        weights_bytes=weights,
        kv_bytes=log.gib(r"(?:Available KV cache memory:|reserved for KV Cache is) ([\d.]+) ?GiB"),
        tokens=log.count(r"GPU KV cache size: ([\d,]+) tokens"),
        activation_bytes=activation,
        non_torch_bytes=non_torch,
        cuda_graphs_bytes=log.gib(r"Estimated CUDA graph memory: ([\d.]+) ?GiB")
        or log.gib(r"Graph capturing finished in .*? took ([\d.]+) ?GiB"),
    )
    if startup.kv_bytes is None and startup.tokens is None:
        raise InputError(
            f"--vllm-log {path} has no line 'Available KV cache memory': give the log of a vLLM that started."
        )
    return startup


class _LogText:
    """The text of a log. Each method returns the first match of a pattern; None: no match."""

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self, pattern: str) -> str | None:
        match = re.search(pattern, self._text)
        return match[1] if match else None

    def _as(self, pattern: str, kind: Callable[[str], _Value]) -> _Value | None:
        value = self.text(pattern)
        return None if value is None else kind(value)

    def integer(self, pattern: str) -> int | None:
        return self._as(pattern, int)

    def number(self, pattern: str) -> float | None:
        return self._as(pattern, float)

    def gib(self, pattern: str) -> int | None:
        return self._as(pattern, lambda value: round(float(value) * GIB))

    def count(self, pattern: str) -> int | None:
        return self._as(pattern, lambda value: int(value.replace(",", "")))

    def flag(self, pattern: str, *, no: str = "False") -> bool | None:
        return self._as(pattern, lambda value: value != no)


def _stated(text: str | None) -> str | None:
    return None if text == "None" else text


def _sampler(log: _LogText) -> bool | None:
    """Returns whether the log says that FlashInfer samples; None if it does not say."""
    if log.text(r"(Using FlashInfer for top-p & top-k sampling)"):
        return True
    return False if log.text(r"(PyTorch-native implementation of top-p & top-k)") else None


def _version(text: str | None) -> VllmVersion | None:
    return None if text is None else parse_version(text)


def startup_of_run(folder: Path) -> StartupLog:
    """Reads the figures of a start-up from the run folder of a measured server.

    Raises InputError if the number of KV blocks is missing, was set by hand, or was simulated.
    """
    info = find_runs(folder)[-1].info
    server, gpu = info.server, info.gpu
    if server.num_gpu_blocks is None or server.num_gpu_blocks_override is not None or server.simulated:
        raise InputError(
            f"--calibrate {folder}: this run's server did not say how many KV blocks its start-up left, or "
            "they were set by hand or simulated. Use the log of a real start-up with --vllm-log."
        )
    return StartupLog(
        source=info.run_id,
        model=info.model,
        version=_version(server.version),
        utilization=server.gpu_memory_utilization,
        max_model_len=server.max_model_len,
        max_num_seqs=server.max_num_seqs,
        kv_dtype=server.cache_dtype,
        vram_bytes=gpu.vram_bytes // gpu.count if gpu and gpu.vram_bytes else None,
        kv_bytes=server.kv_cache_memory_bytes,
        blocks=server.num_gpu_blocks,
    )


def as_started(deployment: PlannedDeployment, log: StartupLog, shape: ModelShape) -> PlannedDeployment:
    """Returns the deployment that wrote the log.

    Its card is that of `deployment`. Its flags are those of the log; flags that the log does not state are
    taken from `deployment`, but adapters and drafts only where the log has them and the model is the same.
    shape: the model of the log.
    """
    stated = {
        "version": log.version,
        "tp": log.tp,
        "pp": log.pp,
        "dtype": log.dtype,
        "kv_dtype": log.kv_dtype,
        "enforce_eager": log.enforce_eager,
        "flashinfer": log.flashinfer,
        "utilization": log.utilization,
        "max_model_len": log.max_model_len,
        "max_num_seqs": log.max_num_seqs,
        "max_num_batched_tokens": log.max_num_batched_tokens,
    }
    known: dict[str, object] = {name: value for name, value in stated.items() if value is not None}
    if shape is not deployment.shape or not log.speculation:
        known["speculation"] = None
    if not log.lora:
        known["max_loras"] = 0
    return replace(deployment, shape=shape, calibration=None, stated_weights_bytes=None, **known)  # type: ignore[arg-type]


def calibration_of(started: PlannedDeployment, log: StartupLog, *, same_model: bool) -> StartupCalibration:
    """Computes corrections of the predicted memory: logged figures divided by predicted ones.

    Without DEBUG lines, the activation peak is what the budget leaves after weights, KV-cache pool and the
    other overheads. Raises InputError if the log contradicts the model and the card.
    """
    stage = started.pp - 1
    predicted = started.overheads(stage)
    activation, kv = log.activation_bytes, log.kv_bytes
    layout = started.layout(stage)
    blocks = log.blocks
    if blocks is None and log.tokens is not None and layout.uniform:
        blocks = log.tokens // layout.block_size
    if kv is None and blocks is not None:
        kv = blocks * layout.bytes_per_block
    if activation is None and kv is not None:
        budget = math.ceil(started.gpu.vram_bytes * started.utilization)
        graphs = log.cuda_graphs_bytes or predicted.cuda_graphs
        activation = budget - (log.weights_bytes or started.weights(stage)) - kv - predicted.non_torch
        activation -= graphs if predicted.graphs_counted else 0
    if activation is None or not 0.1 < activation / predicted.activation < 10:
        raise InputError(
            f"{log.source} does not fit this model and card: its activation peak would be "
            f"{(activation or 0) / GIB:.2f} GiB, where {predicted.activation / GIB:.2f} are expected. "
            "Check --gpu, --gpu-memory-utilization and --calibrate-config."
        )
    weights = log.weights_bytes / started.weights() if log.weights_bytes else None
    graphs_logged = log.cuda_graphs_bytes if predicted.cuda_graphs else None
    return StartupCalibration(
        source=log.source,
        activation=activation / predicted.activation,
        cuda_graphs=graphs_logged / predicted.cuda_graphs if graphs_logged else None,
        non_torch_bytes=log.non_torch_bytes,
        weights=weights if same_model else None,
        same_model=same_model,
    )
