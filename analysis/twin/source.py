"""Makes a twin: fitted to a load test, or from a preset of model and GPU."""

import argparse
import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from analysis.cli import RefusedError, slo_of
from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.levels.level import Level
from analysis.reading.pooling import choose_runs, read_group
from analysis.reading.runs import find_runs
from analysis.reporting.console import ProgressBar
from analysis.twin.calibration import OVERHEAD_REQUESTS, ServerFlags, ServiceFit, calibrate
from analysis.twin.what_if import MemoryFacts
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service
from analysis.virtual.user_classes import run_objectives
from loadtest.errors import InputError
from loadtest.model.step_time import SpeedBands, speed_bands
from loadtest.record import Slo
from loadtest.simulator.presets import find_preset

SIMULATED_DRAWS = 8  # draws of the fit that are simulated for the intervals
MAX_LEFT_OUT = 8
"""Largest number of levels that are left out in turn; each takes a fit."""
PRESET_DRAWS = 16
PRESET_LENGTHS = (512, 128)  # default prompt and output tokens of a preset
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LeftOut:
    """A level, and a service fitted to the levels with other numbers of users."""

    level: Level
    fit: ServiceFit


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedTwin:
    """A fitted service, where it comes from, and the measured levels that it can be checked against."""

    source: str
    """Identifiers of the runs, or name of the preset."""
    fit: ServiceFit
    slo: Slo
    memory: MemoryFacts
    gpus: int = 1
    """Number of GPUs of one replica."""
    levels: Sequence[Level] = ()
    """All levels of the runs, the one that was held out included; empty for a preset."""
    left_out: Sequence[LeftOut] = ()
    """Levels that can be predicted by fits that did not see them, by rising users."""

    @property
    def draws(self) -> Sequence[Service]:
        """Variants of the fitted service that are simulated too, to compute the intervals of predictions."""
        return self.fit.draws[:SIMULATED_DRAWS]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitEffort:
    """How much is simulated to fit a twin, and how many levels are left out in turn."""

    overhead_requests: int = OVERHEAD_REQUESTS
    most_left_out: int | None = None
    """By default MAX_LEFT_OUT."""
    each: "ForEach" = map
    """Calls the fit for each level that is left out; another one may use several processes."""


class ForEach(Protocol):
    """Type of a function like `map`."""

    def __call__(self, work: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterable[_Result]:
        """Returns what `work` returns for each item, in their order."""


def twin_of_run(
    options: argparse.Namespace, bar: ProgressBar, *, effort: FitEffort | None = None
) -> FittedTwin:
    """Fits a twin to the newest runs of the folder that can be pooled (evaluated together).

    effort: by default, that of `FitEffort`. Raises InputError, RefusedError, CalibrationError.
    """
    if options.run is None:
        raise InputError("Name a run folder, or a preset with --preset.")
    groups, _ = choose_runs(find_runs(options.run), None)
    if len(groups) > 1:
        models = ", ".join(group[0].info.model for group in groups)
        raise InputError(f"{options.run} holds runs of several models ({models}): name one run folder.")
    slo = slo_of(options, groups[0][-1].info)
    runs = read_group(groups[0], bar.task)
    evidence = gather_evidence(runs, slo=slo)
    if evidence.open_loop:
        raise RefusedError("An open loop has no levels: calibrate from a run with levels.")
    if runs[-1].info.sessions is not None:
        raise RefusedError(
            "This run replayed recorded sessions (--sessions), and a twin cannot tell which texts only some "
            "of them share: calibrate from a run with --workload, or with --turns and --think-s."
        )
    held_out = _checked_users(evidence, options.hold_out)
    effort = effort or FitEffort()
    most_left_out = effort.most_left_out or MAX_LEFT_OUT
    fit = _fitting(options, evidence, overhead_requests=effort.overhead_requests)
    found = fit([level for level in evidence.levels if level.users != held_out])
    info = runs[-1].info
    return FittedTwin(
        source=", ".join(run.info.run_id for run in runs),
        fit=found,
        slo=run_objectives(info.classes or [], slo),
        levels=evidence.levels,
        left_out=levels_left_out(
            evidence,
            fit,
            advance=bar.task("leaving a level out", total=most_left_out),
            most=most_left_out,
            each=effort.each,
        ),
        memory=MemoryFacts(
            bytes_per_token=info.server.kv_bytes_per_token,
            vram_bytes=info.gpu.vram_bytes if info.gpu else None,
            gpu_memory_utilization=info.server.gpu_memory_utilization,
        ),
        gpus=info.gpu.count if info.gpu else 1,
    )


Fitting = Callable[[Sequence[Level]], ServiceFit]
"""Fits a service to some of the levels of a run."""


def _fitting(options: argparse.Namespace, evidence: Evidence, *, overhead_requests: int) -> Fitting:
    flags = ServerFlags(
        max_num_seqs=options.measured_max_num_seqs,
        max_num_batched_tokens=options.measured_max_num_batched_tokens,
        async_scheduling=options.async_scheduling,
    )
    return lambda levels: calibrate(
        evidence,
        levels,
        flags,
        replicas=options.measured_replicas or (evidence.pool.engines if evidence.pool else 1),
        router=options.router,
        seed=options.seed,
        overhead_requests=overhead_requests,
    )


def levels_left_out(
    evidence: Evidence,
    fit: Fitting,
    *,
    advance: Callable[[int], None] = lambda _: None,
    most: int | None = None,
    each: ForEach = map,
) -> list[LeftOut]:
    """Fits a service without each number of users in turn, at most `most` of them, spread evenly.

    All trusted levels with that number of users are left out together: a pooled run with an equal level would
    otherwise tell what is to be predicted. A number of users without which no service can be fitted is
    skipped.
    """
    users = evidence.trusted
    most = most or MAX_LEFT_OUT
    if len(users) > most:
        users = [users[round(at)] for at in np.linspace(0, len(users) - 1, most)]

    def without(count: int) -> LeftOut | None:
        others = [level for level in evidence.levels if level.users != count]
        newest = [level for level in evidence.levels if level.users == count and level.trusted][-1]
        with contextlib.suppress(RefusedError):
            return LeftOut(level=newest, fit=fit(others))
        return None

    found = []
    for one in each(without, users if len(users) > 1 else []):
        advance(1)
        found += [one] if one is not None else []
    return found


def _checked_users(evidence: Evidence, wanted: int | None) -> int | None:
    """Returns the number of users that the fit must not see, as the user asked; None if not asked.

    Raises InputError if no level with that number of users is trusted, or if no other level is.
    """
    if wanted is None:
        return None
    trusted = evidence.trusted
    if wanted not in trusted:
        known = ", ".join(map(str, trusted)) or "none"
        raise InputError(
            f"--hold-out {wanted}: no level with that number of users is trusted. Trusted: {known}."
        )
    if len(trusted) == 1:
        raise InputError(f"--hold-out {wanted} leaves no trusted level to fit the twin to.")
    return wanted


def twin_of_preset(options: argparse.Namespace) -> FittedTwin:
    """Makes a twin from data sheets instead of a run.

    Its draws differ in how much of the data sheet's bandwidth and FLOP/s the server reaches. Raises
    InputError.
    """
    if options.run is not None:
        raise InputError("Choose one: a run folder or --preset.")
    preset = find_preset(options.preset)
    chatting = ChatBehaviour(conversations=[(PRESET_LENGTHS,)], pauses_s=np.array([CLIENT_TURNAROUND_S]))
    engine = preset.engine_config()
    assert engine.step_time is not None
    overhead_s = engine.step_time.outside_s(PRESET_LENGTHS[0])
    service = Service(engine=engine, chatting=chatting, overhead_s=overhead_s)
    rng = np.random.default_rng(options.seed)
    bands = speed_bands(preset.gpu)
    draws = [_at_other_speed(service, bands, rng) for _ in range(PRESET_DRAWS)]
    slo = Slo(**{name: value for name in Slo.__struct_fields__ if (value := getattr(options, f"slo_{name}"))})
    return FittedTwin(
        source=f"preset {preset.name}",
        fit=ServiceFit(service=service, draws=draws, fitted_users=()),
        slo=slo,
        memory=MemoryFacts(
            bytes_per_token=preset.pool().kv_bytes_per_token,
            vram_bytes=preset.gpu.vram_bytes,
            gpu_memory_utilization=preset.gpu_memory_utilization,
        ),
    )


def _at_other_speed(service: Service, bands: SpeedBands, rng: np.random.Generator) -> Service:
    """Returns the service with other step times, within the bands of deployments that were never measured."""
    steps = service.engine.step_time
    assert steps is not None
    memory, products = (
        math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in (bands.tpot, bands.ttft)
    )
    return service.with_engine(step_time=steps.scaled(memory=memory, products=products))
