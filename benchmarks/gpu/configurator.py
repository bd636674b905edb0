"""Asks NVIDIA's aiconfigurator for the same published conditions, in its own terms and its own environment.

Knows no measurement and no step time of ours.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environments import UnavailableError, is_made, make_environment, program_of
from benchmarks.gpu.models import config_of
from benchmarks.gpu.published import PublishedRow

CONFIGURATOR = "aiconfigurator"
CONFIGURATOR_PINS = ("aiconfigurator==0.12.0",)
"""The release of September 2026; it pins its core, which has the measured times of kernels, by itself."""
SYSTEMS = {
    "NVIDIA A100-SXM4-80GB": "a100_sxm",
    "NVIDIA H100 80GB HBM3": "h100_sxm",
    "NVIDIA H200": "h200_sxm",
    "NVIDIA B200": "b200_sxm",
    "NVIDIA B300": "b300_sxm",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA L40S": "l40s",
    "NVIDIA RTX PRO 6000 Blackwell": "rtx_pro_6000_server",
}
"""Its names of the cards for which it has kernels of vLLM (`systems/query_versions.yaml` and `systems/data`
of the release). It knows the L4, A30, H100 PCIe and A100 PCIe by their data sheets only."""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "llama4_text": "Llama4ForConditionalGeneration",
    "mixtral": "MixtralForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Names of the model types in its ARCHITECTURE_TO_MODEL_FAMILY (`sdk/common.py` of the release)."""
MAX_ANSWER_S = 300.0
"""Seconds after which its run is given up; it takes about half a minute."""


def prepare_configurator(*, install: bool) -> str | None:
    """Says in one sentence why aiconfigurator cannot be asked; None if it can. install: whether to make its
    environment where it is missing, about 700 MB."""
    if is_made(CONFIGURATOR, CONFIGURATOR_PINS):
        return None
    if not install:
        return (
            f"{CONFIGURATOR_PINS[0]} is not installed, so it is not compared; "
            "`python -m benchmarks gpu --aiconfigurator` installs it in an environment of its own."
        )
    try:
        make_environment(CONFIGURATOR, CONFIGURATOR_PINS)
    except (UnavailableError, OSError) as problem:
        return f"{CONFIGURATOR_PINS[0]} is not compared: {problem}"
    return None


def ask_configurator(
    rows: Sequence[PublishedRow], computed: Sequence[float]
) -> list[tuple[float, float] | str]:
    """Returns, for each row, mean TTFT and mean TPOT in seconds, or why aiconfigurator has none.

    computed: for each row, the share of the prompt's tokens that is not in the prefix cache.
    Raises UnavailableError if aiconfigurator does not answer.
    """
    reasons = [_cannot_express(row) for row in rows]
    loads = [
        _load(row, share) for row, share, why in zip(rows, computed, reasons, strict=True) if why is None
    ]
    answers = iter(_run_configurator(loads))
    return [_answer_of(next(answers)) if why is None else why for why in reasons]


def _cannot_express(row: PublishedRow) -> str | None:
    if row.card not in SYSTEMS:
        return f"it has no kernel times of vLLM on the card: {row.card}"
    if row.shape.model_type not in ARCHITECTURES:
        return f"it does not know the architecture: {row.shape.model_type}"
    return None


def _load(row: PublishedRow, computed: float) -> dict[str, object]:
    """Returns a row in terms of `configurator_rows`. aiconfigurator takes whole tokens and requests."""
    prompt = max(1, round(row.prompt))
    return {
        "model": row.model,
        "experts": row.shape.experts_per_token > 0,
        "system": SYSTEMS[row.card],
        "tp": row.tp,
        "prompt": prompt,
        "cached": min(prompt - 1, round((1 - computed) * row.prompt)),
        "output": round(row.output),
        "users": None if row.users is None else max(1, round(row.users)),
        "rate": row.rate,
        "max_num_seqs": row.max_num_seqs,
        "max_num_batched_tokens": row.max_num_batched_tokens,
    }


def _run_configurator(loads: Sequence[dict[str, object]]) -> list[dict[str, float | str]]:
    configs = {model: _foreign_config(model) for model in {str(load["model"]) for load in loads}}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "asked.json", Path(folder) / "answered.json"
        asked.write_text(json.dumps({"configs": configs, "loads": loads}), encoding="utf-8")
        script = Path(__file__).with_name("configurator_rows.py")
        # -P: without it the modules of this folder would be found under their short names.
        words = [program_of(CONFIGURATOR, "python"), "-P", str(script), str(asked), str(answered)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=MAX_ANSWER_S, check=False)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"It did not answer in {MAX_ANSWER_S:.0f} s.") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnavailableError(f"It ended with exit status {done.returncode}: {last[:200]}")
        answers: list[dict[str, float | str]] = json.loads(answered.read_text(encoding="utf-8"))
    return answers


def _foreign_config(model: str) -> dict[str, object]:
    """Returns the model's config.json with the architecture's name, by which aiconfigurator knows models."""
    config = config_of(model)
    return {**config, "architectures": [ARCHITECTURES[str(config["model_type"])]]}


def _answer_of(answer: dict[str, float | str]) -> tuple[float, float] | str:
    if "problem" in answer:
        return str(answer["problem"])
    return float(answer["ttft_s"]), float(answer["tpot_s"])
