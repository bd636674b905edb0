"""Changes that a person asks of the twin: flags, pool, lengths and pauses, as functions on services."""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.virtual.service import Service, TurnTokens
from loadtest.errors import InputError
from loadtest.workload.distributions import Distribution

LENGTH_DRAWS = 2000  # from a stated distribution
Change = Callable[[Service], Service]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFacts:
    """What turns GiB and shares of VRAM into blocks; None where it is not known."""

    bytes_per_token: int | None = None
    vram_bytes: int | None = None
    gpu_memory_utilization: float | None = None


def changes_of(options: argparse.Namespace, now: Service, memory: MemoryFacts) -> tuple[list[str], Change]:
    """The changes that were asked for, in words, and as one function. Raises InputError, ValueError."""
    steps: list[tuple[str, Change]] = []
    engine = {
        name: getattr(options, name)
        for name in ("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching")
        if getattr(options, name) is not None
    }
    if engine:
        words = ", ".join(f"{name} {value}" for name, value in engine.items())
        steps.append((words, lambda one: one.with_engine(**engine)))
    steps += _pool_changes(options, now, memory)
    steps += _chatting_changes(options)

    def change(service: Service) -> Service:
        for _, step in steps:
            service = step(service)
        return service

    return [words for words, _ in steps], change


def _pool_changes(options: argparse.Namespace, now: Service, memory: MemoryFacts) -> list[tuple[str, Change]]:
    asked = {
        name: value
        for name in ("num_gpu_blocks", "kv_cache_memory_gib", "gpu_memory_utilization")
        if (value := getattr(options, name)) is not None
    }
    if len(asked) > 1:
        raise InputError(f"Choose one of --{' and --'.join(name.replace('_', '-') for name in asked)}.")
    found: list[tuple[str, Change]] = []
    block = now.engine.block_size
    half = options.kv_cache_dtype == "fp8"
    if half:
        found.append(("KV cache in fp8", _with_fp8))
    per_token = (memory.bytes_per_token or 0) / (2 if half else 1)
    for name, value in asked.items():
        if name == "num_gpu_blocks":
            blocks = value
        elif not per_token:
            raise InputError(
                f"--{name.replace('_', '-')} needs the bytes of a KV token, which this run does not tell: "
                "give --num-gpu-blocks, or measure with --model-config."
            )
        elif name == "kv_cache_memory_gib":
            blocks = int(value * 2**30 / (per_token * block))
        else:
            blocks = _blocks_at(value, now, memory, per_token * block, half=half)
        asked_as = "" if name == "num_gpu_blocks" else f" ({name} {value:g})"
        words = f"a pool of {blocks:,} blocks{asked_as}"
        found.append((words, lambda one, blocks=blocks: _with_blocks(one, blocks)))  # type: ignore[misc]
    return found


def _blocks_at(
    utilization: float, now: Service, memory: MemoryFacts, block_bytes: float, *, half: bool
) -> int:
    used, vram = memory.gpu_memory_utilization, memory.vram_bytes
    if used is None or vram is None:
        raise InputError(
            "--gpu-memory-utilization needs the GPU's memory and the utilization that was measured at, which "
            "this run does not tell: give --num-gpu-blocks."
        )
    blocks = now.engine.num_gpu_blocks * (2 if half else 1)
    return blocks + int((utilization - used) * vram / block_bytes)


def _with_fp8(service: Service) -> Service:
    engine = service.engine
    faster = service.with_engine(step_per_kv_token_s=engine.step_per_kv_token_s / 2)
    return _with_blocks(faster, 2 * engine.num_gpu_blocks)


def _with_blocks(service: Service, blocks: int) -> Service:
    engine = service.engine
    longest = min(engine.max_model_len, (blocks - 1) * engine.block_size)
    return service.with_engine(num_gpu_blocks=blocks, max_model_len=longest)


def _chatting_changes(options: argparse.Namespace) -> list[tuple[str, Change]]:
    found: list[tuple[str, Change]] = []
    prompt, output = (
        Distribution.parse(text) if text else None for text in (options.prompt_tokens, options.output_tokens)
    )
    if prompt or output:
        words = ", ".join(
            f"{name} {text}"
            for name, text in (("prompts", options.prompt_tokens), ("outputs", options.output_tokens))
            if text
        )
        found.append((words, lambda one: _with_lengths(one, prompt, output, options.seed)))
    if options.think_s is not None:
        think = Distribution.parse(options.think_s)
        rng = random.Random(options.seed)
        pauses = np.array([max(think.draw(rng), 1e-3) for _ in range(LENGTH_DRAWS)])
        found.append(
            (
                f"think time {options.think_s} s",
                lambda one: replace(one, chatting=replace(one.chatting, pauses_s=pauses)),
            )
        )
    return found


def _with_lengths(
    service: Service, prompt: Distribution | None, output: Distribution | None, seed: int
) -> Service:
    """The service with drawn lengths in as many turns; what is not drawn stays as it was."""
    rng = random.Random(seed)
    room = service.engine.max_model_len
    chats = service.chatting.conversations
    drawn = [_drawn_turns(rng.choice(chats), prompt, output, room, rng) for _ in range(LENGTH_DRAWS)]
    return replace(service, chatting=replace(service.chatting, conversations=drawn))


def _drawn_turns(
    turns: Sequence[TurnTokens],
    prompt: Distribution | None,
    output: Distribution | None,
    room: int,
    rng: random.Random,
) -> list[TurnTokens]:
    found: list[TurnTokens] = []
    was = now = 0  # tokens of the history, as it was and as it is drawn
    for said, answered in turns:
        new = prompt.draw_count(rng) if prompt else said - was
        asked = min(now + new, room - 1)
        made = min(output.draw_count(rng) if output else answered, room - asked)
        found.append((asked, made))
        was, now = said + answered, asked + made
    return found
