"""TODO."""

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np

from analysis.answers.twin import FleetAnswer, Interval, LimitAnswer, Prediction, Term, TwinAnswer
from analysis.cli import RefusedError, slo_of
from analysis.evidence.evidence import Evidence, gather
from analysis.levels.level import Level
from analysis.reading.pooling import choose_runs, read_group
from analysis.reading.runs import find_runs
from analysis.reporting import twin as twin_report
from analysis.reporting.console import Bar, progress
from analysis.statistics.samples import student
from analysis.twin.calibration import ServerFlags, ServiceFit, calibrate
from analysis.twin.fleet import Fleet, size_fleet
from analysis.twin.maximum import VirtualMaximum, find_maximum
from analysis.twin.step_fit import STEP_TERMS
from analysis.twin.what_if import MemoryFacts, changes_of
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import VirtualFigures, VirtualRun, simulate_arrivals, simulate_users
from analysis.virtual.service import Chatting, Service
from loadtest.errors import InputError
from loadtest.record import Slo
from loadtest.simulator.config import EngineConfig
from loadtest.simulator.presets import find_preset
from loadtest.simulator.routers import ROUTERS
from loadtest.workload.arrivals import ArrivalProcess
from loadtest.workload.traces import read_trace

DRAWS_PLAYED = 8  # of the calibration, for the intervals: each is a simulation, or a search, of its own
PRESET_DRAWS = 16
PRESET_BANDWIDTH = (0.83, 1.21)  # a preset's 0.75 of the data sheet's bandwidth, against 0.62 and 0.9
PRESET_FLOPS = (0.8, 1.33)  # its 0.4 of the FLOP/s, against 0.3 and 0.5
SCALE = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedTwin:
    """A fitted service and where it comes from."""

    source: str
    calibration: ServiceFit
    slo: Slo
    memory: MemoryFacts
    gpus: int = 1
    levels: Sequence[Level] = ()
    held_out: Level | None = None


def twin_answer(options: argparse.Namespace) -> TwinAnswer:
    """Fits, checks, changes, predicts; writes twin.json and twin.svg where asked.

    Raises InputError, ValueError, RefusedError, CalibrationError.
    """
    with progress() as bar:
        twin = _from_preset(options) if options.preset else _from_run(options, bar)
        check = _check(twin, options.router, bar.task("checking", total=DRAWS_PLAYED + 1))
        changes, change = changes_of(options, twin.calibration.service, twin.memory)
        now = change(twin.calibration.service)
        draws = [change(one) for one in twin.calibration.draws[:DRAWS_PLAYED]]
        predictions = _predictions(options, twin, now, draws, changed=bool(changes), task=bar.task)
        found = _limit(options, twin, now, draws, bar.task("limit", total=DRAWS_PLAYED + 1))
        fleets = _fleets(options, twin, now, draws, bar.task)
    answer = TwinAnswer(
        source=twin.source,
        changes=changes,
        slo=twin.slo,
        engine=_engine_facts(now.engine),
        terms=_terms(twin.calibration),
        fitted_users=list(twin.calibration.fitted_users),
        check=check,
        predictions=predictions,
        limit=found,
        fleet=fleets,
        warnings=_warnings(twin, now),
    )
    folder = options.output or (options.run if options.run and (options.run / "run.json").is_file() else None)
    if folder is not None:
        twin_report.write_twin(answer, folder=folder)
    return answer


# Where it comes from.

Task = Callable[..., Callable[[int], None]]


def _from_run(options: argparse.Namespace, bar: Bar) -> FittedTwin:
    if options.run is None:
        raise InputError("Name a run folder, or a preset with --preset.")
    groups, _ = choose_runs(find_runs(options.run), None)
    if len(groups) > 1:
        models = ", ".join(group[0].info.model for group in groups)
        raise InputError(f"{options.run} holds runs of several models ({models}): name one run folder.")
    slo = slo_of(options, groups[0][-1].info)
    runs = read_group(groups[0], bar.task)
    evidence = gather(runs, slo=slo)
    if evidence.open_loop:
        raise RefusedError("An open loop has no levels: calibrate from a run with levels.")
    held_out = _held_out(evidence, options.hold_out)
    levels = [level for level in evidence.levels if level is not held_out]
    flags = ServerFlags(
        max_num_seqs=options.measured_max_num_seqs,
        max_num_batched_tokens=options.measured_max_num_batched_tokens,
        async_scheduling=options.async_scheduling,
    )
    info = runs[-1].info
    return FittedTwin(
        source=", ".join(run.info.run_id for run in runs),
        calibration=calibrate(
            evidence,
            levels,
            flags,
            replicas=options.measured_replicas or (evidence.pool.engines if evidence.pool else 1),
            router=options.router,
            seed=options.seed,
        ),
        slo=slo,
        levels=evidence.levels,
        held_out=held_out,
        memory=MemoryFacts(
            bytes_per_token=info.server.kv_bytes_per_token,
            vram_bytes=info.gpu.vram_bytes if info.gpu else None,
            gpu_memory_utilization=info.server.gpu_memory_utilization,
        ),
        gpus=info.gpu.count if info.gpu else 1,
    )


def _held_out(evidence: Evidence, wanted: int | None) -> Level | None:
    """The level that the fit does not see: as asked, else the highest trusted one of three or more."""
    trusted = sorted((level for level in evidence.levels if level.trusted), key=lambda level: level.users)
    if wanted is not None:
        found = [level for level in trusted if level.users == wanted]
        if not found:
            known = ", ".join(str(level.users) for level in trusted) or "none"
            raise InputError(f"--hold-out {wanted}: no trusted level of so many users; there are: {known}.")
        return found[-1]
    return trusted[-1] if len({level.users for level in trusted}) > 2 else None


def _from_preset(options: argparse.Namespace) -> FittedTwin:
    if options.run is not None:
        raise InputError("Choose one: a run folder or --preset.")
    preset = find_preset(options.preset)
    engine = preset.engine_config()
    nothing = Chatting(conversations=[((512, 128),)], pauses_s=np.array([1e-3]))
    service = Service(engine=engine, chatting=nothing)
    rng = np.random.default_rng(options.seed)
    draws = [_other_speed(service, rng) for _ in range(PRESET_DRAWS)]
    slo = Slo(**{name: value for name in Slo.__struct_fields__ if (value := getattr(options, f"slo_{name}"))})
    return FittedTwin(
        source=f"preset {preset.name}",
        calibration=ServiceFit(service=service, draws=draws, fitted_users=()),
        slo=slo,
        memory=MemoryFacts(
            bytes_per_token=preset.pool().kv_bytes_per_token,
            vram_bytes=preset.gpu.vram_bytes,
            gpu_memory_utilization=preset.gpu_memory_utilization,
        ),
    )


def _other_speed(service: Service, rng: np.random.Generator) -> Service:
    engine = service.engine
    memory, compute = rng.uniform(*PRESET_BANDWIDTH), rng.uniform(*PRESET_FLOPS)
    return service.with_engine(
        step_base_s=engine.step_base_s * memory,
        step_per_seq_s=engine.step_per_seq_s * memory,
        step_per_kv_token_s=engine.step_per_kv_token_s * memory,
        prefill_per_token_s=engine.prefill_per_token_s * compute,
    )


# What comes of it.

PREDICTED_FIGURES = tuple(
    field.name for field in fields(VirtualFigures) if field.name not in ("users", "requests")
)


def _predictions(
    options: argparse.Namespace,
    twin: FittedTwin,
    now: Service,
    draws: Sequence[Service],
    *,
    changed: bool,
    task: Task,
) -> list[Prediction]:
    route = ROUTERS[options.router]
    if options.arrivals or options.trace:
        arrivals = _arrivals(options, now)
        advance = task("predicting", total=len(draws) + 1)

        def open_loop(service: Service) -> VirtualRun:
            advance(1)
            return simulate_arrivals(service, arrivals, replicas=_replicas(options, twin), route=route())

        return [_prediction(0, open_loop, now, draws, twin.slo)]
    users = (
        options.users or sorted({level.users for level in twin.levels if level.trusted}) or [1, 2, 4, 8, 16]
    )
    advance = task("predicting", total=len(users) * (len(draws) + 1))
    found = []
    for number in users:

        def plateau(service: Service, number: int = number) -> VirtualRun:
            advance(1)
            return simulate_users(
                service,
                number,
                requests=max(1000, 30 * number),
                replicas=_replicas(options, twin),
                route=route(),
            )

        prediction = _prediction(number, plateau, now, draws, twin.slo)
        level = next((one for one in twin.levels if one.users == number and one.trusted), None)
        if level is not None and not changed and _replicas(options, twin) == twin.calibration.replicas:
            prediction = msgspec.structs.replace(
                prediction, measured=measured_figures(level), held_out=level is twin.held_out
            )
        found.append(prediction)
    return found


def _prediction(
    users: int,
    played: Callable[[Service], VirtualRun],
    now: Service,
    draws: Sequence[Service],
    slo: Slo,
) -> Prediction:
    plays = [played(service).figures(slo) for service in (now, *draws)]
    columns = {name: [float(getattr(one, name)) for one in plays] for name in PREDICTED_FIGURES}
    known = {name: column for name, column in columns.items() if not any(map(math.isnan, column))}
    return Prediction(
        users=users,
        values={name: float(np.mean(column)) for name, column in known.items()},
        intervals={name: _interval(column) for name, column in known.items()},
    )


def _replicas(options: argparse.Namespace, twin: FittedTwin) -> int:
    return int(options.replicas or twin.calibration.replicas)


def _interval(values: Sequence[float]) -> Interval:
    """90 % by Student's t, of as many draws as there are; nothing here is negative."""
    middle, reach = float(np.mean(values)), student(len(values)) * float(np.std(values, ddof=1))
    return max(middle - reach, 0.0), middle + reach


def measured_figures(level: Level) -> dict[str, float]:
    """The level's own figures under the names of `Seen`."""
    values = {
        "in_flight": level.in_flight,
        "ttft_p50_s": level.ttft.p50,
        "ttft_p95_s": level.ttft.p95,
        "tpot_p50_s": level.tpot.p50,
        "tpot_p95_s": level.tpot.p95,
        "itl_p50_s": level.gap.p50 if level.gap_is_itl else None,
        "itl_p95_s": level.gap.p95 if level.gap_is_itl else None,
        "output_tok_s": level.output_tok_s,
        "kv_usage": level.kv_usage,
        "running": level.running,
        "preempted_fraction": level.preemptions / level.finished if level.finished else None,
    }
    return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def _check(twin: FittedTwin, router: str, advance: Callable[[int], None]) -> Prediction | None:
    """The level that was held out, predicted before anything is changed."""
    level, calibration = twin.held_out, twin.calibration
    if level is None:
        return None

    def plateau(service: Service) -> VirtualRun:
        advance(1)
        return simulate_users(
            service,
            level.users,
            requests=max(1500, 40 * level.users),
            replicas=calibration.replicas,
            route=ROUTERS[router](),
        )

    prediction = _prediction(
        level.users, plateau, calibration.service, calibration.draws[:DRAWS_PLAYED], twin.slo
    )
    return msgspec.structs.replace(prediction, measured=measured_figures(level), held_out=True)


def _arrivals(options: argparse.Namespace, now: Service) -> list[DueRequest]:
    rng = random.Random(options.seed)
    if options.trace:
        due = list(read_trace(options.trace, speed=options.trace_speed))
    else:
        law = ArrivalProcess.parse(options.arrivals)
        due = list(law.arrivals(seed=options.seed, duration_s=options.duration_s))
    if not due:
        raise InputError("No request is due in that time: raise the rate or --duration-s.")
    chats = now.chatting.conversations
    found = []
    for arrival in due:
        prompt, output = rng.choice(chats)[0]
        found.append(
            DueRequest(
                at_s=arrival.due_s,
                prompt_tokens=arrival.prompt_tokens or prompt,
                output_tokens=arrival.output_tokens or output,
                prefix_blocks=arrival.prefix_blocks,
            )
        )
    return found


def _limit(
    options: argparse.Namespace,
    twin: FittedTwin,
    now: Service,
    draws: Sequence[Service],
    advance: Callable[[int], None],
) -> LimitAnswer | None:
    if options.arrivals or options.trace:
        return None
    route = ROUTERS[options.router]

    def search(service: Service, start: int | None) -> VirtualMaximum | None:
        advance(1)
        return find_maximum(service, twin.slo, start=start, replicas=_replicas(options, twin), route=route)

    point = search(now, None)
    if point is None:
        return LimitAnswer(x=0.0, interval=(0.0, 0.0), wall="not even one user")
    start = max(point.users, 1) if math.isfinite(point.x) else None
    found = [point, *(search(draw, start) for draw in draws)]
    x = [one.x if one is not None else 0.0 for one in found]
    if not all(map(math.isfinite, x)):
        return LimitAnswer(x=_finite(point.x), interval=(_finite(min(x)), None), wall=point.wall)
    return LimitAnswer(x=float(np.mean(x)), interval=_interval(x), wall=point.wall)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _fleets(
    options: argparse.Namespace,
    twin: FittedTwin,
    now: Service,
    draws: Sequence[Service],
    task: Task,
) -> list[FleetAnswer]:
    if options.fleet_users is None:
        return []
    advance = task("fleet", total=8 * (DRAWS_PLAYED + 1))
    found = size_fleet(
        now,
        draws,
        options.fleet_users,
        twin.slo,
        router=options.router,
        spare=options.spare_replicas,
        on_probe=advance,
    )
    if found is None:
        raise RefusedError("One replica does not hold one user within the objectives: no fleet does.")
    price = options.price_per_gpu_hour
    first = _fleet_answer(found, options.router, price and price * twin.gpus)
    sizes = [users for users in SCALE if users > options.fleet_users]
    return [first, *(_scaled(first, users) for users in sizes)]


def _fleet_answer(found: Fleet, router: str, price: float | None) -> FleetAnswer:
    return FleetAnswer(
        users=found.users,
        replicas=found.replicas,
        interval=found.interval,
        spare=found.spare,
        per_replica=found.per_replica_x,
        binding=found.binding,
        router=router,
        price_per_hour=price and price * found.replicas,
        usual_ttft_p95_s=found.usual.ttft_p95_s,
        after_loss_ttft_p95_s=found.after_loss.ttft_p95_s,
    )


def _scaled(one: FleetAnswer, users: int) -> FleetAnswer:
    """Replicas that are alike hold alike: the same share for each."""
    factor = users / one.users
    needed = [whole - one.spare for whole in one.interval]
    low, high = (math.ceil(whole * factor) + one.spare for whole in needed)
    replicas = math.ceil(users / one.per_replica) + one.spare
    price = one.price_per_hour and one.price_per_hour / one.replicas * replicas
    return msgspec.structs.replace(
        one,
        users=users,
        replicas=replicas,
        interval=(min(low, replicas), max(high, replicas)),
        price_per_hour=price,
    )


def _engine_facts(engine: EngineConfig) -> dict[str, float | int | bool | None]:
    return {field.name: getattr(engine, field.name) for field in fields(engine) if field.name != "seed"}


def _terms(calibration: ServiceFit) -> list[Term]:
    now = calibration.service
    found = [
        Term(
            name=name,
            value=getattr(now.engine, name),
            interval=_interval([getattr(draw.engine, name) for draw in calibration.draws]),
        )
        for name in STEP_TERMS
    ]
    fixed = {"overhead_s": now.overhead_s, "overhead_per_user_s": now.overhead_per_user_s}
    return found + [
        Term(name=name, value=value, interval=(value, value)) for name, value in fixed.items() if value
    ]


def _warnings(twin: FittedTwin, now: Service) -> list[str]:
    found = []
    if twin.levels and twin.held_out is None:
        found.append(
            "No level was held out, because fewer than three were trusted: the twin's error is unknown."
        )
    before = twin.calibration.service
    other_lengths = now.chatting.conversations is not before.chatting.conversations
    if twin.levels and other_lengths and not now.engine.step_per_kv_token_s:
        found.append(
            "The run could not tell what a KV token costs a step apart from a sequence: with other lengths "
            "the decode times are less certain than the intervals say."
        )
    return found


def user_list(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a list of users, such as 8,16,32")
    return found
