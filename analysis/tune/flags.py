"""The flags of vLLM that are tried, with the values that come next. Knows no simulation of users."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.answers.tune import FlagChange
from analysis.capacity.options import MAX_UTILIZATION
from analysis.cli import cli_flag
from analysis.twin.source import FittedTwin
from analysis.virtual.run import VirtualFigures
from analysis.walls.names import WallName
from loadtest.record import RunInfo

Setting = Mapping[str, object]
"""Changed flags and their values, under the names that `analysis.twin.what_if.changes_of` knows."""
MIN_BATCHED_TOKENS = 256
"""Smallest token budget that is tried; below it a prompt of usual length takes many steps."""
FULL_ENOUGH = 0.5
"""Share of the pool, or of the slots, that is in use at the limit, from which on more of it may matter."""
DOUBLINGS = 2
"""How often a number is doubled or halved at most. Farther from what was measured, step times do not hold:
with 16 times the token budget a real vLLM held 12.7 users, where 31.1 (14.2 to 63.3) were predicted."""
COUNTED_FLAGS = ("max_num_seqs", "max_num_batched_tokens")
"""Flags that may be changed once more after another flag: what bound then may not bind now."""
TRIED_FLAGS = (
    *COUNTED_FLAGS,
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "enable_prefix_caching",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """Users at the first wall of a setting, and what the simulation shows just below it."""

    x: float
    wall: WallName
    below: VirtualFigures


@dataclass(frozen=True, kw_only=True, slots=True)
class Climb:
    """A flag and the values to try one after the other, while each holds more users than the one before."""

    name: str
    values: Sequence[object]


@dataclass(frozen=True, kw_only=True, slots=True)
class NotTried:
    """A flag that is not simulated, and why."""

    name: str
    reason: str


def present_value(name: str, twin: FittedTwin, info: RunInfo, setting: Setting) -> object:
    """Returns the value of a flag in a setting; None if nobody states it."""
    if name in setting:
        return setting[name]
    if name == "gpu_memory_utilization":
        return twin.memory.gpu_memory_utilization
    if name == "kv_cache_dtype":
        return info.server.cache_dtype or "auto"
    return getattr(twin.fit.service.engine, name)


def flag_change(name: str, to: object, twin: FittedTwin, info: RunInfo) -> FlagChange:
    """Describes the change of one flag of the measured server."""
    now = present_value(name, twin, info, {})
    return FlagChange(flag=cli_flag(name), now="unknown" if now is None else str(now), to=str(to))


def next_climbs(
    twin: FittedTwin, info: RunInfo, setting: Setting, limit: Limit, *, kept: Sequence[str]
) -> Iterator[Climb | NotTried]:
    """Yields what can be tried beside a setting, and what is not tried because it cannot matter.

    kept: names of flags that the user wants to keep.
    """
    for name in TRIED_FLAGS:
        if name in setting and name not in COUNTED_FLAGS:
            continue
        if name in kept:
            yield NotTried(name=name, reason="kept, as you asked")
        else:
            yield from _CLIMBS[name](twin, info, setting, limit)


def _slots(twin: FittedTwin, info: RunInfo, setting: Setting, limit: Limit) -> Iterator[Climb | NotTried]:
    now, budget = (_count(name, twin, info, setting) for name in ("max_num_seqs", "max_num_batched_tokens"))
    running = limit.below.running
    if limit.wall != "max_num_seqs" and running < FULL_ENOUGH * now:
        yield NotTried(name="max_num_seqs", reason=f"{running:.0f} of {now} slots are in use at the limit")
        return
    values = [now * 2**step for step in range(1, DOUBLINGS + 1) if now * 2**step <= budget]
    if values:
        yield Climb(name="max_num_seqs", values=values)
    else:
        reason = f"more slots than max_num_batched_tokens ({budget}) cannot be"
        yield NotTried(name="max_num_seqs", reason=reason)


def _budget(twin: FittedTwin, info: RunInfo, setting: Setting, limit: Limit) -> Iterator[Climb | NotTried]:
    now = _count("max_num_batched_tokens", twin, info, setting)
    least = max(MIN_BATCHED_TOKENS, _count("max_num_seqs", twin, info, setting))
    yield Climb(name="max_num_batched_tokens", values=[now * 2**step for step in range(1, DOUBLINGS + 1)])
    halves = [now // 2**step for step in range(1, DOUBLINGS + 1) if now // 2**step >= least]
    if halves:
        yield Climb(name="max_num_batched_tokens", values=halves)


def _utilization(
    twin: FittedTwin, info: RunInfo, setting: Setting, limit: Limit
) -> Iterator[Climb | NotTried]:
    name, memory = "gpu_memory_utilization", twin.memory
    used = memory.gpu_memory_utilization
    if info.server.num_gpu_blocks_override is not None:
        yield NotTried(name=name, reason="the pool was set by hand (--num-gpu-blocks-override)")
    elif used is None or memory.vram_bytes is None or memory.bytes_per_token is None:
        yield NotTried(
            name=name,
            reason="the run does not say the GPU's memory, the utilization and the bytes of a KV token",
        )
    elif used >= MAX_UTILIZATION - 0.005:
        yield NotTried(name=name, reason=f"it is at {used:g} already")
    elif reason := _not_full(limit):
        yield NotTried(name=name, reason=reason)
    else:
        yield Climb(name=name, values=[MAX_UTILIZATION])


def _cache_dtype(
    twin: FittedTwin, info: RunInfo, setting: Setting, limit: Limit
) -> Iterator[Climb | NotTried]:
    name, now = "kv_cache_dtype", str(present_value("kv_cache_dtype", twin, info, setting))
    if "fp8" in now:
        yield NotTried(name=name, reason=f"it is {now} already")
    elif (reason := _not_full(limit)) and not twin.fit.service.engine.step_per_kv_token_s:
        yield NotTried(name=name, reason=reason)
    else:
        yield Climb(name=name, values=["fp8"])


def _prefix_caching(
    twin: FittedTwin, info: RunInfo, setting: Setting, limit: Limit
) -> Iterator[Climb | NotTried]:
    name, chatting = "enable_prefix_caching", twin.fit.service.chatting
    turns = max(len(one) for one in chatting.conversations)
    if twin.fit.service.engine.enable_prefix_caching:
        yield NotTried(name=name, reason="it is on already")
    elif turns == 1 and not chatting.shared_prefix_tokens:
        yield NotTried(name=name, reason="the requests of this run share no text that the run could show")
    else:
        yield Climb(name=name, values=[True])


_CLIMBS = {
    "max_num_seqs": _slots,
    "max_num_batched_tokens": _budget,
    "gpu_memory_utilization": _utilization,
    "kv_cache_dtype": _cache_dtype,
    "enable_prefix_caching": _prefix_caching,
}


def _not_full(limit: Limit) -> str | None:
    """Says that a larger pool cannot matter; None if it may."""
    usage = limit.below.kv_usage
    if limit.wall == "kv_cache" or not usage < FULL_ENOUGH:
        return None
    return f"the pool is {100 * usage:.0f} % full at the limit"


def _count(name: str, twin: FittedTwin, info: RunInfo, setting: Setting) -> int:
    value = present_value(name, twin, info, setting)
    assert isinstance(value, int)
    return value
