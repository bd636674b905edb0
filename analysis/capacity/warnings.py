"""TODO."""

import math
from collections.abc import Sequence

import numpy as np

from analysis.answers.capacity import WALL_NAMES
from analysis.capacity.headline import REACH
from analysis.evidence.evidence import MIN_PAIRS, Evidence
from analysis.evidence.gauge import Gauge
from analysis.levels.level import Level
from analysis.levels.measure import output_cv
from analysis.levels.open_loop import open_loop_warnings
from analysis.walls.kv_cache import MemoryWall
from analysis.walls.placed import PlacedWall

DISAGREES = 0.05
LOCKSTEP_CV = 0.1
SIMULATOR_LATE_S = 0.02
HEAVY_TAIL = (0.9, 2000)  # an output CV from here needs so many requests


def warnings_of(
    evidence: Evidence, memory: MemoryWall | None, gauge: Gauge | None, stands: Sequence[PlacedWall]
) -> list[str]:
    found = [warning for run in evidence.runs for warning in run.warnings]
    if evidence.open_loop:
        return list(dict.fromkeys(found + open_loop_warnings(evidence.runs)))
    return list(
        dict.fromkeys(
            found
            + _memory_warnings(evidence, gauge)
            + _length_warnings(evidence)
            + _reach_warnings(evidence, memory, stands)
            + _simulator_warnings(evidence)
        )
    )


def _simulator_warnings(evidence: Evidence) -> list[str]:
    """The embedded server's own error, where it is as large as what is measured."""
    late = np.concatenate([run.server.simulated_lateness_s for run in evidence.runs])
    tpot = [level.tpot.p50 for level in evidence.levels if level.trusted and level.tpot.p50]
    middle = float(np.nanmedian(late)) if np.isfinite(late).any() else 0.0
    if not tpot or middle < max(SIMULATOR_LATE_S, min(tpot)):
        return []
    return [
        f"The simulated server was late itself: half of the time some tokens came {1e3 * middle:.0f} ms or "
        "more after they were due, because its process lacked CPU. Give it a core of its own."
    ]


def _memory_warnings(evidence: Evidence, gauge: Gauge | None) -> list[str]:
    found = []
    if evidence.pool is None:
        found.append(
            "The memory wall is missing: the server's /metrics did not say how many KV blocks it has "
            "(--kv-cache-tokens says it). Latency and throughput walls still answer."
        )
    elif evidence.pairs is None:
        found.append(
            f"The memory wall is missing: fewer than {MIN_PAIRS} finished requests carried token counts."
        )
    elif evidence.pool.engines > 1:
        found.append(
            f"{evidence.pool.engines} engines: the memory wall takes users as spread evenly over equal pools."
        )
    if gauge is not None and abs(gauge.off) > max(DISAGREES, 3.0 * gauge.off_se):
        more = "more" if gauge.off > 0 else "less"
        found.append(
            f"The server's gauge shows {100 * abs(gauge.off):.0f} % {more} KV cache a request than the "
            "requests' lengths explain: hidden tokens, shared prefixes or a hybrid cache layout."
        )
    return found


def _length_warnings(evidence: Evidence) -> list[str]:
    found = []
    spread = output_cv(evidence.runs)
    if spread < LOCKSTEP_CV:
        found.append(
            f"Lockstep: output lengths hardly vary (CV {spread:.2f}). Requests march in step, preemptions "
            "then depend on how users started, and the memory wall may be off by users. Vary the lengths."
        )
    if spread >= HEAVY_TAIL[0] and evidence.pairs is not None and len(evidence.pairs) < HEAVY_TAIL[1]:
        found.append(
            f"Output lengths are heavy-tailed (CV {spread:.2f}): {len(evidence.pairs)} requests are few, the "
            f"interval may be too narrow. Measure {HEAVY_TAIL[1]}, or cap max_tokens."
        )
    seeds = [run.info.settings["seed"] for run in evidence.runs if "seed" in run.info.settings]
    if len(set(map(str, seeds))) < len(seeds):
        found.append(
            "Runs with the same seed are pooled: their lengths repeat, so the interval is too narrow."
        )
    return found


def _doubts(levels: Sequence[Level]) -> list[str]:
    """Levels that are not trusted, those of one reason in one sentence."""
    doubted: dict[tuple[str, ...], list[int]] = {}
    for level in sorted(levels, key=lambda level: level.users):
        if level.why_not:
            doubted.setdefault(level.why_not, []).append(level.users)
    return [
        f"Level{'s' * (len(users) > 1)} {', '.join(map(str, users))} not trusted: {'; '.join(why)}."
        for why, users in doubted.items()
    ]


def _reach_warnings(evidence: Evidence, memory: MemoryWall | None, stands: Sequence[PlacedWall]) -> list[str]:
    found = _doubts(evidence.levels)
    first = min(stands, key=lambda stand: stand.x, default=None)
    if first is None or not evidence.trusted:
        return found
    name, low, top = WALL_NAMES[first.name], evidence.trusted[0], evidence.trusted[-1]
    if top < first.x <= REACH * top:
        found.append(
            f"Extrapolated: the highest trusted level is {top} users, below the {name} wall. "
            "Run one level above it."
        )
    if math.ceil(first.x) < low:
        found.append(
            f"Extrapolated: the lowest trusted level is {low} users, above the {name} wall. "
            "Run one level below it."
        )
    if (
        first.name == "kv_cache"
        and memory is not None
        and memory.shift.levels == 0
        and first.x <= REACH * top
    ):
        found.append(
            "No trusted level near the memory wall counted preemptions: it rests on the formula alone."
        )
    return found
