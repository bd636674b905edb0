"""All facts from which the walls (limits in users) are computed, gathered from runs that may be pooled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.evidence.lengths import LengthPairs, length_pairs_of
from analysis.evidence.replicas import hidden_replicas, without_metrics
from analysis.evidence.step_time import StepCost, step_cost_of
from analysis.evidence.think_time import ActiveShare, Thinking, active_of, thinking_of
from analysis.levels.context import Context, Pool
from analysis.levels.failures.classes import FailureTotal
from analysis.levels.level import Level, failures_of
from analysis.levels.measure import levels_of
from analysis.notes import Note
from analysis.reading.runs import Run
from loadtest.record import Slo

MIN_PAIRS = 100
VLLM_BLOCK_SIZE = 16  # DEFAULT_BLOCK_SIZE in vllm/config/cache.py


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """Runs, their levels, and what all levels tell together. A field is None where it is unknown."""

    runs: Sequence[Run]
    levels: Sequence[Level]
    failures: Sequence[FailureTotal]
    """All failures by class, the most frequent first."""
    pairs: LengthPairs | None
    pool: Pool | None
    thinking: Thinking | None
    slo: Slo
    replicas: Sequence[Note] = ()
    """Why the metrics cover a part of the server only, and are left out; empty if they are used."""

    @property
    def active(self) -> ActiveShare:
        """Share of the time in which a user has a request in flight, as a function of the number of users."""
        return active_of(self.thinking)

    @property
    def thinking_per_engine(self) -> Thinking | None:
        """Users who think, as one engine sees them."""
        engines = self.pool.engines if self.pool else 1
        return self.thinking.per_engine(engines) if self.thinking else None

    @property
    def step_cost(self) -> StepCost | None:
        """Step time and prefill time of all engines together; None where the levels do not tell."""
        if self.pairs is None or self.gathered:
            return None
        return step_cost_of(
            self.runs,
            self.levels,
            uncached_prompt=float(self.pairs.own_prompt.mean()),
            output=float(self.pairs.output.mean()),
        )

    @property
    def max_num_seqs(self) -> int | None:
        """`max_num_seqs` of all engines together, as stated or else as suspected; None if neither."""
        return max_num_seqs_of(self.levels, stated=_stated_max_num_seqs(self.runs))

    @property
    def suspected_max_num_seqs(self) -> int | None:
        """`max_num_seqs` where nobody states it and a queue in a level looks like it; else None."""
        return None if _stated_max_num_seqs(self.runs) is not None else self.max_num_seqs

    @property
    def gathered(self) -> bool:
        """Whether chunks were gathered on their way in a trusted level, so that the times at which tokens
        came say nothing about the engine."""
        return any(level.requests.gathered for level in self.levels if level.trusted)

    @property
    def open_loop(self) -> bool:
        """Whether requests were sent at set times in at least one of the runs."""
        return any(run.info.arrivals for run in self.runs)

    @property
    def objectives(self) -> Mapping[str | None, Slo]:
        """The objectives of each class of users, by its name; without a workload file those of all requests,
        under None."""
        classes = self.runs[-1].info.classes if self.runs else None
        return {each.name: each.objectives.over(self.slo) for each in classes or []} or {None: self.slo}

    @property
    def trusted(self) -> list[int]:
        """Numbers of users at which at least one level is trusted, in rising order."""
        return sorted({level.users for level in self.levels if level.trusted})


def gather_evidence(runs: Sequence[Run], *, slo: Slo) -> Evidence:
    """Measures the levels of runs that may be pooled, and returns all that these levels tell together."""
    replicas = [note for run in runs if (note := hidden_replicas(run))]
    if replicas:
        runs = [without_metrics(run) for run in runs]
    pool = _pool(runs)
    pairs = length_pairs_of(runs, block_tokens=pool.block_tokens if pool else VLLM_BLOCK_SIZE)
    context = _context(runs, pairs, pool, slo)
    levels = [level for run in runs for level in levels_of(run, context)]
    failures = failures_of(runs, levels)
    not_load = frozenset(
        one.failure for one in failures if one.cause == "not load" and one.failure.may_be_overload
    )
    if not_load:
        context = replace(context, not_load=not_load)
        levels = [level for run in runs for level in levels_of(run, context)]
    classes = runs[-1].info.classes if runs else None
    thinking = thinking_of(levels, classes or ()) if context.thinks else None
    return Evidence(
        runs=runs,
        levels=levels,
        failures=failures,
        pairs=pairs if len(pairs) >= MIN_PAIRS else None,
        pool=pool,
        thinking=thinking,
        slo=slo,
        replicas=replicas,
    )


def _context(runs: Sequence[Run], pairs: LengthPairs, pool: Pool | None, slo: Slo) -> Context:
    block_tokens = pool.block_tokens if pool else VLLM_BLOCK_SIZE
    own = pairs.own_prompt
    ends = (own + pairs.output) / block_tokens + 0.5
    return Context(
        slo=slo,
        pool=pool,
        largest_prompt_blocks=-(-int(own.max(initial=0)) // block_tokens),
        mean_output=float(pairs.output.mean()) if len(pairs) else math.inf,
        mean_end_blocks=float(ends.mean()) if len(pairs) else 0.0,
        thinks=users_think(runs),
        max_num_seqs=_stated_max_num_seqs(runs),
    )


def _pool(runs: Sequence[Run]) -> Pool | None:
    """Returns the KV-cache pool, with num_gpu_blocks - 1 blocks in each engine: that of the last scrape if a
    server came back with another one.

    None where the server did not tell its size.
    """
    server, samples = runs[-1].info.server, runs[-1].server
    told = samples.blocks_each[~np.isnan(samples.blocks_each)]
    engines = max(run.server.engines for run in runs)
    if server.block_size is None:
        return None
    blocks = server.num_gpu_blocks
    if len(told) and samples.last_blocks_each != told[0]:
        blocks = round(samples.last_blocks_each)
    if blocks is None and server.kv_cache_tokens is not None:
        blocks = server.kv_cache_tokens // server.block_size
    return Pool(blocks=blocks - 1, block_tokens=server.block_size, engines=engines) if blocks else None


def users_think(runs: Sequence[Run]) -> bool:
    """Whether users were set to pause between requests in at least one of the runs. Those who replay recorded
    sessions may."""
    pauses = [run.info.settings.get("think_s") for run in runs]
    pauses += [
        pause for run in runs for each in run.info.classes or [] for pause in (each.think_s, each.tool_s)
    ]
    paused = any(pause not in (None, "", "0", 0, 0.0) for pause in pauses)
    return paused or any(run.info.sessions is not None for run in runs)


def _stated_max_num_seqs(runs: Sequence[Run]) -> int | None:
    stated = runs[-1].info.server.max_num_seqs if runs else None
    return stated * max(run.server.engines for run in runs) if stated else None


def max_num_seqs_of(levels: Sequence[Level], *, stated: int | None) -> int | None:
    """Returns max_num_seqs as stated, else as suspected, else None.

    It is suspected where a trusted level shows a queue for slots (`analysis.levels.queues`). If several
    levels do so, the largest number is taken, because more than `max_num_seqs` never run. None where more
    run at another level.
    """
    if stated is not None:
        return stated
    trusted = [level.server for level in levels if level.trusted]
    slots = max((one.max_num_seqs for one in trusted if one.max_num_seqs is not None), default=None)
    return None if slots is None or any(one.running > slots for one in trusted) else slots
