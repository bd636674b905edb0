"""Reads published measurements of vLLM on GPUs, and leaves out by rule what they cannot tell. Knows no step
time."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.models import shape_of
from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu, find_gpu
from loadtest.model.kv_cache import kv_bytes_per_token
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.model.startup import default_batch_limits

SHARED_PREFIXES = ("inference-sim", "llm-d-planner")
"""Parts of the names of sources whose prompts repeat text that vLLM's prefix cache then holds."""
DOUBTED = {
    "InferenceX": "the source calls its figures experimental and likely to contain errors",
    "tt-inference-server": "the source does not say whether the A100 is the 40 or the 80 GB card",
}
"""Parts of the names of sources that are shown but neither fitted nor counted, and why."""
MAX_BURST = 30
"""Most requests of a burst whose decode rate is fitted: they fit one batch, and run together to the end."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One published load of one deployment, and what was measured, in seconds. None: not published."""

    deployment: str
    """Model, card and tensor parallelism: rows that are left out together."""
    model: str
    card: str
    source: str
    shape: ModelShape
    gpu: Gpu
    tp: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prompt: float
    output: float
    users: float | None
    """Concurrency of a closed loop on one replica; None for an open loop."""
    rate: float | None
    """Requests a second into one replica; None for a closed loop."""
    together: bool
    """Whether a closed loop's answers have one length, so that its requests begin and end together."""
    kv_bytes_per_token: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    doubt: str | None
    """Why it is shown but not counted; None if it counts."""

    @property
    def shares_prefixes(self) -> bool:
        return any(part in self.source for part in SHARED_PREFIXES)


def read_conditions(path: Path) -> tuple[list[PublishedRow], dict[str, int]]:
    """Reads the steady rows of vLLM, and small bursts. Returns them, and how many others were left out for
    each reason."""
    found: list[PublishedRow] = []
    left_out: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        reason = _reason_to_leave_out(row)
        if reason is None:
            try:
                found.append(_condition(row))
            except (UnsupportedModelError, ValueError) as problem:
                reason = str(problem)
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
    return found, left_out


def _reason_to_leave_out(row: Mapping[str, object]) -> str | None:
    if row["engine"] != "vllm":
        return "another engine"
    name, users = str(row["deployment_id"]), row["concurrency"]
    if row["load_kind"] == "burst":
        small = isinstance(users, int | float) and users <= MAX_BURST
        return None if small and "/1gpu/" in name else "a burst or an overload"
    if row["load_kind"] != "steady":
        return "a static batch, a burst or an overload"
    if not row["consistent"]:
        return "its own figures contradict each other"
    if users is None and row["request_rate"] is None:
        return "its load is not stated"
    return "data-parallel attention" if "/dp" in name else None


def _condition(row: Mapping[str, object]) -> PublishedRow:
    model, card = str(row["model"]), str(row["gpu"])
    shape, gpu, tp = shape_of(model), find_gpu(card), int(_number(row, "tp") or 1)
    tokens, seqs = default_batch_limits(gpu)
    replicas = _number(row, "replicas") or 1.0
    users, rate = _number(row, "concurrency"), _number(row, "request_rate")
    prompt, output = _number(row, "input_mean"), _number(row, "output_mean")
    if prompt is None or output is None or output < 2:
        raise ValueError("its lengths are not stated")
    burst = row["load_kind"] == "burst"
    ttft_s, e2e_s = (None if burst else _seconds(row, name) for name in ("ttft_ms", "e2e_ms"))
    derived = row.get("tpot_derived_ms")
    tpot_s = derived / 1e3 if isinstance(derived, int | float) else _seconds(row, "tpot_ms")
    if tpot_s is None and ttft_s is not None and e2e_s is not None:
        tpot_s = (e2e_s - ttft_s) / (output - 1)
    source = f"{row['source']} {row['deployment_id']}"
    return PublishedRow(
        deployment=f"{model.rpartition('/')[2]} {card} tp{tp} {_origin(str(row['deployment_id']))}",
        model=model.rpartition("/")[2],
        card=gpu.name,
        source=source,
        shape=shape,
        gpu=gpu,
        tp=tp,
        max_num_seqs=int(_number(row, "max_num_seqs") or seqs),
        max_num_batched_tokens=int(_number(row, "max_num_batched_tokens") or tokens),
        prompt=prompt,
        output=output,
        users=None if users is None else users / replicas,
        rate=None if users is not None or rate is None else rate / replicas,
        together="EOS honoured" not in str(row["output_law"]),
        kv_bytes_per_token=float(kv_bytes_per_token(shape, tp=tp) or 0),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        doubt=next((why for part, why in DOUBTED.items() if part in source), None),
    )


def _origin(deployment_id: str) -> str:
    """Returns the last part of the id without flags: who measured."""
    return re.sub(r" (mml|mnbt|FP16|FP8|gmu).*", "", deployment_id.rpartition("/")[2])


def _number(row: Mapping[str, object], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def _seconds(row: Mapping[str, object], name: str) -> float | None:
    """Returns the published mean, or the median where only that is published."""
    figures = row[name]
    if not isinstance(figures, Mapping):
        return None
    value = figures.get("mean") or figures.get("p50")
    return value / 1e3 if isinstance(value, int | float) else None
