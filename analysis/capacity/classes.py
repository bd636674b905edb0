"""What each class of users of a mix gets at the level nearest to the answer."""

import math
from collections.abc import Sequence

from analysis.answers.capacity import ClassAnswer, ClassObjective, Headline
from analysis.levels.classes import ClassFigures
from analysis.levels.level import Level
from analysis.statistics.crossings import MISS_LIMIT
from analysis.statistics.samples import in_time
from analysis.walls.names import WallName


def class_answers(levels: Sequence[Level], headline: Headline) -> dict[str, ClassAnswer]:
    """Returns the answer for each class of users, by its name; empty without a workload file.

    It is measured at the trusted level nearest to the limit, the highest one where no limit was met; where
    none is trusted there is none.
    """
    trusted = [level for level in levels if level.trusted]
    if not trusted:
        return {}
    limit_x = headline.estimate_x or math.inf
    level = min(trusted, key=lambda level: abs(math.log(level.users) - math.log(min(limit_x, 1e9))))
    held = sum(one.kv_tokens for one in level.classes if not math.isnan(one.kv_tokens))
    return {one.name: _answer(one, level, held) for one in level.classes}


def _answer(found: ClassFigures, level: Level, held: float) -> ClassAnswer:
    shares, latency = in_time(found.miss), found.latency
    return ClassAnswer(
        level_users=level.users,
        users=found.users,
        requests=found.n,
        ttft_s=latency.ttft_s,
        tpot_s=latency.tpot_s,
        stall_s=latency.stall_s,
        e2e_s=latency.e2e_s,
        in_time=(shares[1], shares[0], shares[2]) if shares else None,
        kv_share=found.kv_tokens / held if held and not math.isnan(found.kv_tokens) else None,
        objectives=_objectives(found),
    )


def _objectives(found: ClassFigures) -> dict[WallName, ClassObjective]:
    """Returns the objectives of latency, and whether each is met: by the share of requests that miss it."""
    slo, latency = found.slo, found.latency
    each: list[tuple[WallName, float | None, float | None]] = [
        ("ttft", slo.ttft_p95_s, _share(latency.ttft_miss.misses, latency.ttft_miss.n)),
        ("tpot", slo.tpot_p95_s, _share(latency.tpot_miss.misses, latency.tpot_miss.n)),
        ("stall", slo.stall_p95_s, _share(latency.stall_miss.misses, latency.stall_miss.n)),
    ]
    return {
        name: ClassObjective(p95_s=limit_s, met=None if missed is None else missed <= MISS_LIMIT)
        for name, limit_s, missed in each
        if limit_s is not None
    }


def _share(misses: int, requests: int) -> float | None:
    return misses / requests if requests else None
