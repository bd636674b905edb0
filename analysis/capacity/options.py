"""TODO."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.answers.capacity import Lever
from analysis.capacity.headline import REACH, Headline
from analysis.capacity.judgement import Judgement
from analysis.evidence.evidence import Evidence
from analysis.walls.block_law import BlockLaw, Occupancy, block_law
from analysis.walls.kv_cache import MemoryWall
from analysis.walls.kv_shift import wall
from analysis.walls.placed import PlacedWall

KEEPS_HISTORIES = (
    "KV offloading to the host's memory (--kv-offloading-size): evicted histories are loaded, not computed",
    "shorter histories: fewer turns sent back, or summaries of old ones",
)
STICKY = " and each conversation sent where its history is (a prefix-aware router)"
CUT_SHARE = 0.05  # of the requests: those that a shorter max_model_len would cut


def options_of(
    judgement: Judgement, stands: Sequence[PlacedWall], head: Headline, per_token: int | None
) -> list[Lever]:
    """What would raise the answer, and by how many users where a model can say."""
    if head.estimate is None or head.estimate_x is None:
        return []
    evidence, memory, prefix = judgement.evidence, judgement.memory, judgement.prefix
    found = []
    others = [stand for stand in stands if stand.name != head.binding]
    reach = REACH * evidence.trusted[-1]
    if head.binding == "kv_cache" and memory is not None:
        for change, factor in _bigger_pools(evidence, per_token):
            found.append(_option(change, _wall_with(memory, evidence, factor), others, head.estimate, reach))
        longest, moved = _wall_with_cut_lengths(memory, evidence)
        if math.floor(moved) > head.estimate:
            change = f"--max-model-len {longest} (1 in 20 requests seen was longer and would be cut)"
            found.append(_option(change, moved, others, head.estimate, reach))
    elif head.binding == "prefix_cache" and prefix is not None:
        for change, factor in _bigger_pools(evidence, per_token):
            found.append(_option(change, prefix.with_pool(factor), others, head.estimate, reach))
        found += [_unknown_lever(change) for change in KEEPS_HISTORIES]
    elif head.binding == "max_num_seqs" and others:
        found.append(_option("raise --max-num-seqs", math.inf, others, head.estimate, reach))
    elif head.binding in ("ttft", "tpot", "throughput"):
        found.append(_unknown_lever("shorter prompts, a faster GPU, or a looser objective"))
    twice = math.floor(2 * head.estimate_x)
    found.append(
        Lever(
            change=f"a second replica, users spread evenly{STICKY if head.binding == 'prefix_cache' else ''}",
            users=twice,
            gain_users=twice - head.estimate,
            limited_by=None,
        )
    )
    return found


def _unknown_lever(change: str) -> Lever:
    note = "no model here says by how many users"
    return Lever(change=change, users=None, gain_users=None, limited_by=None, note=note)


def _bigger_pools(evidence: Evidence, per_token: int | None) -> list[tuple[str, float]]:
    """Changes of the pool as factors on its blocks."""
    info = evidence.runs[-1].info
    found = []
    used, vram = info.server.gpu_memory_utilization, info.gpu.vram_bytes if info.gpu else None
    if evidence.pool is not None and used is not None and vram and per_token and used < 0.945:
        more = (0.95 - used) * vram / per_token
        found.append((f"--gpu-memory-utilization 0.95 (now {used:g})", 1.0 + more / evidence.pool.tokens))
    else:
        found.append(
            ("a KV pool 10 % larger (--gpu-memory-utilization, or fewer other users of the GPU)", 1.1)
        )
    if "fp8" not in (info.server.cache_dtype or ""):
        found.append(("--kv-cache-dtype fp8 (twice the tokens; check answer quality)", 2.0))
    return found


def _wall_with(memory: MemoryWall, evidence: Evidence, factor: float) -> float:
    return _moved(memory, evidence, memory.law, int(memory.blocks * factor))


def _moved(memory: MemoryWall, evidence: Evidence, law: BlockLaw, blocks: int) -> float:
    """The wall with another law, or in another pool, moved as far by what was counted."""
    occupancy = Occupancy(law, blocks, evidence.active_of_one)
    start = max(int(memory.x * blocks / memory.blocks / memory.pool.engines), 1)
    return wall(occupancy, evidence.slo, shift=memory.shift, start=start) * memory.pool.engines


def _wall_with_cut_lengths(memory: MemoryWall, evidence: Evidence) -> tuple[int, float]:
    """The length that one in twenty requests passes, and the wall when answers end there."""
    pairs = evidence.pairs
    assert pairs is not None
    longest = math.ceil(np.quantile(pairs.prompt + pairs.output, 1.0 - CUT_SHARE))
    fits = pairs.prompt < longest
    cut = replace(
        pairs,
        prompt=pairs.prompt[fits],
        output=np.minimum(pairs.output, longest - pairs.prompt)[fits],
        conversation=pairs.conversation[fits],
    )
    law = block_law(cut, block_tokens=memory.pool.block_tokens)
    return longest, _moved(memory, evidence, law, memory.blocks)


def _option(change: str, moved: float, others: Sequence[PlacedWall], estimate: int, reach: float) -> Lever:
    """`reach`: users beyond which the models speak of what nobody has measured."""
    next_wall = min(others, key=lambda stand: stand.x, default=None)
    limited = next_wall is not None and next_wall.x < moved
    users = math.floor(next_wall.x if next_wall is not None and limited else moved)
    return Lever(
        change=change,
        users=users,
        gain_users=users - estimate,
        limited_by=next_wall.name if next_wall is not None and limited else None,
        beyond=users > reach,
    )
