"""Warnings that come with the answer: what was left out, and where the models are least certain."""

import math
from collections.abc import Sequence

import numpy as np

from analysis.capacity.headline import REACH
from analysis.capacity.way_to_engine import way_warnings
from analysis.evidence.evidence import MIN_PAIRS, Evidence
from analysis.evidence.gauge import Gauge
from analysis.levels.level import Level
from analysis.levels.measure import output_cv
from analysis.levels.open_loop import open_loop_warnings
from analysis.notes import (
    Extrapolated,
    FormulaAlone,
    GaugeDisagrees,
    HeavyTail,
    LevelsNotTrusted,
    Lockstep,
    Note,
    PlainSentence,
    PoolUnknown,
    SeedRepeated,
    SimulatorLate,
    SpreadOverEngines,
    SuspectedMaxNumSeqs,
    TooFewLengths,
    TooFewToHold,
)
from analysis.walls.held import HeldLimit
from analysis.walls.kv_cache import KvCacheWall
from analysis.walls.placed import PlacedWall

GAUGE_DISAGREES = 0.05
LOCKSTEP_CV = 0.1
SIMULATOR_LATE_S = 0.02
HEAVY_TAIL_CV, HEAVY_TAIL_REQUESTS = 0.9, 2000


def warnings_of(
    evidence: Evidence, memory: KvCacheWall | None, gauge: Gauge | None, walls: Sequence[PlacedWall]
) -> list[Note]:
    """Returns all warnings without repetition. The warnings of the load test come first."""
    short = [run.info.shortfall for run in evidence.runs if run.info.shortfall is not None]
    told = [*short, *(warning for run in evidence.runs for warning in run.warnings)]
    found: list[Note] = [PlainSentence(sentence=sentence) for sentence in told]
    if evidence.open_loop:
        return _each_once(found + open_loop_warnings(evidence.runs))
    return _each_once(
        found
        + _memory_warnings(evidence, gauge)
        + way_warnings(evidence)
        + _length_warnings(evidence)
        + untrusted_levels(evidence.levels)
        + _reach_warnings(evidence, memory, walls)
        + _simulator_warnings(evidence)
    )


def _each_once(notes: Sequence[Note]) -> list[Note]:
    return [note for position, note in enumerate(notes) if note not in notes[:position]]


def _simulator_warnings(evidence: Evidence) -> list[Note]:
    """Returns a warning if the embedded (simulated) server itself was too slow for the measurement.

    It is too slow if it sends tokens later than planned, by as much as the measured TPOT.
    """
    late = np.concatenate([run.server.simulated_lateness_s for run in evidence.runs])
    tpot = [level.requests.tpot_s.p50 for level in evidence.levels if level.trusted]
    known = [value for value in tpot if value]
    median = float(np.nanmedian(late)) if np.isfinite(late).any() else 0.0
    if not known or median < max(SIMULATOR_LATE_S, min(known)):
        return []
    return [SimulatorLate(late_s=median)]


def _memory_warnings(evidence: Evidence, gauge: Gauge | None) -> list[Note]:
    found: list[Note] = [*evidence.replicas]
    if evidence.pool is None:
        found += [] if evidence.replicas else [PoolUnknown()]
    elif evidence.pairs is None:
        found.append(TooFewLengths(needed=MIN_PAIRS))
    elif evidence.pool.engines > 1:
        found.append(SpreadOverEngines(engines=evidence.pool.engines))
    slots = evidence.suspected_max_num_seqs
    if slots is not None:
        found.append(SuspectedMaxNumSeqs(slots=slots))
    if gauge is not None and abs(gauge.off) > max(GAUGE_DISAGREES, 3.0 * gauge.off_se):
        found.append(GaugeDisagrees(off=gauge.off))
    return found


def _length_warnings(evidence: Evidence) -> list[Note]:
    found: list[Note] = []
    cv = output_cv(evidence.runs)
    if cv < LOCKSTEP_CV:
        found.append(Lockstep(cv=cv))
    if cv >= HEAVY_TAIL_CV and evidence.pairs is not None and len(evidence.pairs) < HEAVY_TAIL_REQUESTS:
        found.append(HeavyTail(cv=cv, requests=len(evidence.pairs), needed=HEAVY_TAIL_REQUESTS))
    seeds = [run.info.settings["seed"] for run in evidence.runs if "seed" in run.info.settings]
    if len(set(map(str, seeds))) < len(seeds):
        found.append(SeedRepeated())
    return found


def too_few_to_hold(held: Sequence[HeldLimit], users: int) -> list[Note]:
    """Returns a note on each limit that is not known to hold at the highest measured level up to `users`."""
    found: list[Note] = []
    for limit in held:
        proof = limit.at(users)
        if limit.binds and not proof.holds:
            note = TooFewToHold(
                wall=limit.name,
                user_class=limit.user_class,
                users=proof.users,
                share_at_most=proof.share_at_most,
                limit=limit.limit,
                more_requests=proof.more_requests,
                more_s=proof.more_s,
            )
            found.append(note)
    return found


def untrusted_levels(levels: Sequence[Level]) -> list[Note]:
    """Returns notes on the levels that are not trusted, with the reasons.

    Levels with the same reasons share a note.
    """
    found: list[LevelsNotTrusted] = []
    for level in sorted(levels, key=lambda level: level.users):
        why = list(level.why_not)
        same = next((note for note in found if note.why == why), None)
        if same is not None:
            same.users.append(level.users)
        elif why:
            found.append(LevelsNotTrusted(users=[level.users], why=why))
    return list(found)


def _reach_warnings(
    evidence: Evidence, memory: KvCacheWall | None, walls: Sequence[PlacedWall]
) -> list[Note]:
    found: list[Note] = []
    first = min(walls, key=lambda wall: wall.x, default=None)
    if first is None or not evidence.trusted:
        return found
    low, top = evidence.trusted[0], evidence.trusted[-1]
    if top < first.x <= REACH * top:
        found.append(Extrapolated(wall=first.name, side="above", users=top))
    if math.ceil(first.x) < low:
        found.append(Extrapolated(wall=first.name, side="below", users=low))
    formula_alone = first.name == "kv_cache" and memory is not None and memory.shift.levels == 0
    if formula_alone and first.x <= REACH * top:
        found.append(FormulaAlone())
    return found
