"""Turns requested changes (flags, KV-cache pool, lengths, pauses) into functions.

Each function takes a service and returns a changed copy.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.cli import cli_flag
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChattingClass, Service, TurnTokens, mixed
from loadtest.errors import InputError
from loadtest.units import GIB
from loadtest.workload.distributions import Distribution

LENGTH_DRAWS = 2000  # number of conversations whose lengths are drawn
Change = Callable[[Service], Service]
"""A function that returns a changed copy of a service."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFacts:
    """Memory figures of the measured server; None: not known.

    With them, GiB and shares of VRAM are converted into KV blocks.
    """

    bytes_per_token: int | None = None
    vram_bytes: int | None = None
    gpu_memory_utilization: float | None = None


NO_CHANGES: dict[str, object] = dict.fromkeys(
    (
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_prefix_caching",
        "num_gpu_blocks",
        "kv_cache_memory_gib",
        "gpu_memory_utilization",
        "kv_cache_dtype",
        "prompt_tokens",
        "output_tokens",
        "think_s",
        "class_weight",
    )
)
"""The flags of changes, by their names in `changes_of`, when none is given."""


def changes_of(
    options: argparse.Namespace, measured: Service, memory: MemoryFacts
) -> tuple[list[str], Change]:
    """Returns the requested changes in two forms: a list of descriptions, and one function that applies all.

    Raises InputError, ValueError.
    """
    steps: list[tuple[str, Change]] = []
    engine = {
        name: getattr(options, name)
        for name in ("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching")
        if getattr(options, name) is not None
    }
    if engine:
        words = ", ".join(f"{name} {value}" for name, value in engine.items())
        steps.append((words, lambda service: service.with_engine(**engine)))
    steps += _pool_changes(options, measured, memory)
    steps += _chatting_changes(options, measured)

    def change(service: Service) -> Service:
        for _, step in steps:
            service = step(service)
        return service

    return [words for words, _ in steps], change


def _pool_changes(
    options: argparse.Namespace, measured: Service, memory: MemoryFacts
) -> list[tuple[str, Change]]:
    asked = {
        name: value
        for name in ("num_gpu_blocks", "kv_cache_memory_gib", "gpu_memory_utilization")
        if (value := getattr(options, name)) is not None
    }
    if len(asked) > 1:
        raise InputError(f"Choose one of {' and '.join(map(cli_flag, asked))}.")
    found: list[tuple[str, Change]] = []
    block = measured.engine.block_size
    half = options.kv_cache_dtype == "fp8"
    if half:
        found.append(("KV cache in fp8", _with_fp8))
    per_token = (memory.bytes_per_token or 0) / (2 if half else 1)
    for name, value in asked.items():
        if name == "num_gpu_blocks":
            blocks = value
        elif not per_token:
            raise InputError(
                f"{cli_flag(name)} needs the size of a KV token in bytes, which is not known: "
                "give --num-gpu-blocks, or measure with --model-config."
            )
        elif name == "kv_cache_memory_gib":
            blocks = int(value * GIB / (per_token * block))
        else:
            blocks = _blocks_at(value, measured, memory, per_token * block, half=half)
        asked_as = "" if name == "num_gpu_blocks" else f" ({name} {value:g})"
        words = f"a pool of {blocks:,} blocks{asked_as}"
        found.append((words, lambda service, blocks=blocks: with_blocks(service, blocks)))  # type: ignore[misc]
    return found


def _blocks_at(
    utilization: float, measured: Service, memory: MemoryFacts, block_bytes: float, *, half: bool
) -> int:
    used, vram = memory.gpu_memory_utilization, memory.vram_bytes
    if used is None or vram is None:
        raise InputError(
            "--gpu-memory-utilization needs the GPU's memory and the utilization of the measured server, "
            "which are not known: give --num-gpu-blocks."
        )
    blocks = measured.engine.num_gpu_blocks * (2 if half else 1)
    return blocks + int((utilization - used) * vram / block_bytes)


def _with_fp8(service: Service) -> Service:
    engine = service.engine
    steps = engine.step_time.scaled(cache=0.5) if engine.step_time is not None else None
    faster = service.with_engine(step_per_kv_token_s=engine.step_per_kv_token_s / 2, step_time=steps)
    return with_blocks(faster, 2 * engine.num_gpu_blocks)


def with_blocks(service: Service, blocks: int) -> Service:
    """Returns the service with a KV-cache pool of so many blocks, and a context that this pool holds."""
    engine = service.engine
    longest = min(engine.max_model_len, (blocks - 1) * engine.block_size)
    return service.with_engine(num_gpu_blocks=blocks, max_model_len=longest)


def _chatting_changes(options: argparse.Namespace, measured: Service) -> list[tuple[str, Change]]:
    found: list[tuple[str, Change]] = []
    asked = [
        name for name in ("prompt_tokens", "output_tokens", "think_s") if getattr(options, name) is not None
    ]
    if measured.chatting.classes and asked:
        raise InputError(
            f"{cli_flag(asked[0])} does not say which class of users it is for: in a mix only "
            "--class-weight changes the load."
        )
    if options.class_weight:
        found.append(_with_weights(dict(options.class_weight), measured.chatting.classes))
    prompt, output = (
        Distribution.parse(text) if text else None for text in (options.prompt_tokens, options.output_tokens)
    )
    if prompt or output:
        words = ", ".join(
            f"{name} {text}"
            for name, text in (("prompts", options.prompt_tokens), ("outputs", options.output_tokens))
            if text
        )
        found.append((words, lambda service: _with_lengths(service, prompt, output, options.seed)))
    if options.think_s is not None:
        think = Distribution.parse(options.think_s)
        rng = random.Random(options.seed)
        pauses = np.array([max(think.draw(rng), CLIENT_TURNAROUND_S) for _ in range(LENGTH_DRAWS)])
        found.append(
            (
                f"think time {options.think_s} s",
                lambda service: replace(service, chatting=replace(service.chatting, pauses_s=pauses)),
            )
        )
    return found


def _with_weights(weights: dict[str, float], measured: Sequence[ChattingClass]) -> tuple[str, Change]:
    known = {one.name: one.weight for one in measured}
    if not known:
        raise InputError("--class-weight needs a run with classes of users (--workload of the load test).")
    for name in [name for name in weights if name not in known]:
        raise InputError(f"--class-weight {name}: the run has no such class. It has: {', '.join(known)}.")
    weights = known | weights

    def change(service: Service) -> Service:
        classes = [replace(one, weight=weights[one.name]) for one in service.chatting.classes]
        return replace(service, chatting=mixed([one for one in classes if one.weight > 0]))

    if not any(weights.values()):
        raise InputError("--class-weight leaves no class of users: one needs a weight above 0.")
    return "weights of " + ", ".join(f"{name} {weight:g}" for name, weight in weights.items()), change


def _with_lengths(
    service: Service, prompt: Distribution | None, output: Distribution | None, seed: int
) -> Service:
    """Returns the service with LENGTH_DRAWS conversations of new lengths.

    Each has the turns of a randomly chosen measured conversation. prompt, output: distributions of the new
    lengths; None keeps the measured lengths.
    """
    rng = random.Random(seed)
    context = service.engine.max_model_len
    measured = service.chatting.conversations
    drawn = [_drawn_turns(rng.choice(measured), prompt, output, context, rng) for _ in range(LENGTH_DRAWS)]
    return replace(service, chatting=replace(service.chatting, conversations=drawn))


def _drawn_turns(
    turns: Sequence[TurnTokens],
    prompt: Distribution | None,
    output: Distribution | None,
    context: int,
    rng: random.Random,
) -> list[TurnTokens]:
    drawn: list[TurnTokens] = []
    history = drawn_history = 0  # tokens of the history, measured and drawn
    for prompt_tokens, output_tokens in turns:
        added = prompt.draw_count(rng) if prompt else prompt_tokens - history
        asked = min(drawn_history + added, context - 1)
        answered = min(output.draw_count(rng) if output else output_tokens, context - asked)
        drawn.append((asked, answered))
        history, drawn_history = prompt_tokens + output_tokens, asked + answered
    return drawn
