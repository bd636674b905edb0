"""Writes the commands that start the recommended server, load it as the run did, and compare both."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from analysis.answers.tune import UsersInterval
from analysis.cli import cli_flag
from analysis.tune.flags import Setting
from loadtest.record import RunInfo

REPEATED_SETTINGS = (
    "workload",
    "prompt_tokens",
    "output_tokens",
    "think_s",
    "turns",
    "thinking",
    "prompts",
    "temperature",
    "seed",
    "settle_s",
)
"""Settings of a load test that its repetition must have too; those at their defaults are left out."""
DEFAULTS: Mapping[str, Sequence[str]] = {
    "think_s": ("0", "0.0"),
    "turns": ("1",),
    "temperature": ("0", "0.0"),
    "seed": ("0",),
    "settle_s": ("5", "5.0"),
}
"""As in `loadtest.settings`."""
PROOF_LEVEL_S = 60.0
"""Length of a level of the proof: twice the default, so that intervals are narrow enough."""
TRIED_NEW = 1.15
"""The highest level of the proof, as a multiple of the users that are predicted: beyond the wall."""


def serve_command(info: RunInfo, setting: Setting, *, stated: Mapping[str, int | None]) -> str:
    """Returns the `vllm serve` line of the measured server with the changed flags, as far as it is known.

    stated: values of flags that the user stated of the measured server.
    """
    server = info.server
    half = setting.get("kv_cache_dtype") == "fp8"
    override = server.num_gpu_blocks_override
    flags: dict[str, object] = {
        "--max-model-len": server.max_model_len,
        "--gpu-memory-utilization": server.gpu_memory_utilization,
        # An override counts blocks, and a block of 8 bits is half as large.
        "--num-gpu-blocks-override": override * (2 if half else 1) if override else None,
        "--max-num-seqs": server.max_num_seqs,
        **{cli_flag(name): value for name, value in stated.items() if value is not None},
        **{cli_flag(name): value for name, value in setting.items()},
    }
    words = ["vllm", "serve", info.model]
    for flag, value in flags.items():
        if value is not None:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def load_test_command(
    settings: Mapping[str, object], *, scenario: str, host: str, now_x: float, users: UsersInterval
) -> str:
    """Returns the load test with the workload of the settings, at levels around the predicted limit.

    settings: those of a load test, by their names in `loadtest.settings`; others count as not given.
    """
    words = ["locust", "-f", f"scenarios/{scenario}.py", "--host", host, "--headless"]
    for name in REPEATED_SETTINGS:
        value = settings.get(name)
        if value not in (None, "") and str(value) not in DEFAULTS.get(name, ()):
            words += [cli_flag(name), str(value)]
    if settings.get("ignore_eos") is False:
        words += ["--ignore-eos", "false"]
    level_s = max(PROOF_LEVEL_S, float(str(settings.get("level_s") or 0)))
    levels = ",".join(map(str, proof_levels(now_x=now_x, users=users)))
    return shlex.join([*words, "--levels", levels, "--level-s", f"{level_s:g}"])


def proof_levels(*, now_x: float, users: UsersInterval) -> list[int]:
    """Returns the levels of the proof: one user, the present limit, and the predicted interval and beyond."""
    low, high = users
    top = high if high is not None else 2 * max(low, now_x)
    wanted = [1, now_x, low, (low + top) / 2, top, TRIED_NEW * top]
    return sorted({max(math.floor(one), 1) for one in wanted[:-1]} | {math.ceil(wanted[-1])})


def compare_command(run: Path | None) -> str:
    """Returns the comparison of the run with the load test that follows."""
    return shlex.join(["python", "-m", "analysis.compare", str(run), "NEW_RUN"])


def serve_notes(changed: Collection[str]) -> list[str]:
    """Returns what has to be checked before a server with these changed flags is used."""
    said = {
        "kv_cache_dtype": "An FP8 KV cache may change answers: check their quality, and that the card "
        "supports it.",
        "gpu_memory_utilization": "Peaks at vLLM's start must fit beside a larger utilization: lower it if "
        "it does not start.",
    }
    return [note for name, note in said.items() if name in changed]


def run_notes(changed: Collection[str]) -> list[str]:
    """Returns what the commands cannot know where a run was tuned, for the changed flags."""
    notes = ["The vllm serve line has the flags that the run tells: add the others that the server has."]
    if "max_num_batched_tokens" in changed or "max_num_seqs" in changed:
        notes.append(
            "More slots or a larger token budget raise the memory of vLLM's start-up, which the pool pays "
            "for: the simulation leaves that out, analysis.sizing counts it."
        )
    return [*notes, *serve_notes(changed)]
