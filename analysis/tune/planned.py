"""Which flags hold more users of a deployment that is only planned: its engine is predicted, not measured."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from analysis.answers.sizing import FloatBand
from analysis.answers.tune import (
    FlagChange,
    TriedChange,
    TuneAnswer,
    TunedConfiguration,
    TunedUsers,
    UsersInterval,
)
from analysis.capacity.options import MAX_UTILIZATION
from analysis.cli import RefusedError, cli_flag
from analysis.sizing.deployment.planned import PlannedDeployment, serve_flags
from analysis.sizing.engine import SizedEngine, size_engine
from analysis.sizing.flags import SizingFlags
from analysis.sizing.predict import DoesNotFitError, FittedPlan, fitted_plan
from analysis.sizing.unmet import unmet_objectives, unmet_sentence
from analysis.tune.commands import load_test_command, serve_notes
from analysis.tune.flags import DOUBLINGS, FULL_ENOUGH, MIN_BATCHED_TOKENS
from analysis.tune.recommend import NOTICEABLE_USERS
from analysis.twin.predictions import Advance
from analysis.virtual.processes import for_each
from analysis.walls.names import WallName
from loadtest.errors import InputError

PLANNED_SHARE = 0.05
"""Share of the users that a change must add to count: where a latency hardly rises with users, its wall moves
by some percent with the random numbers of a simulation (docs/sizing.md, limits)."""
PLANNED_ROUNDS = 3
"""Most flags that are combined."""
PLANNED_LENGTH = 0.4
"""Factor on the requests that are simulated: settings have the same random numbers."""
PLANNED_FLAGS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "tensor_parallel_size",
)

Changes = Mapping[str, object]
"""Values of flags by their names."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlannedSetting:
    """A setting of the flags and what all its replicas hold."""

    changes: Changes
    deployment: PlannedDeployment
    users: FloatBand
    wall: WallName
    kv_usage: float
    """Share of the pool that is held at the limit."""
    running: float
    """Requests in flight in a replica at the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refused:
    """Why a setting holds nobody."""

    reason: str


def planned_answer(flags: SizingFlags, *, kept: Sequence[str], advance: Advance) -> TuneAnswer:
    """Sizes the deployment with flags changed, and recommends those that surely hold more users.

    kept: names of flags that stay as they are. advance: called with 1 after each round. Raises InputError
    like the sizing, and RefusedError if the deployment holds nobody as it is.
    """
    now = _sized(flags, {})
    if isinstance(now, _Refused):
        raise RefusedError(now.reason)
    best, tried = now, list[TriedChange]()
    for number in range(PLANNED_ROUNDS):
        advance(1)
        climbs = [one for one in _climbs(flags, best) if one[0] not in kept]
        found = list(for_each(partial(_climbed, flags, best), climbs))
        if number == 0:
            tried = [
                _tried(now, name, values, one) for (name, values), one in zip(climbs, found, strict=True)
            ]
            tried += [_not_tried(now, name, reason) for name, reason in _without_effect(now, climbs, kept)]
        better = [one for one in found if isinstance(one, PlannedSetting) and _is_more(best, one)]
        if not better:
            break
        best = max(better, key=lambda one: one.users[1])
    return TuneAnswer(
        source=f"{now.deployment.model} on {now.deployment.gpu.name}",
        predicted=True,
        model=now.deployment.model,
        slo=flags.workload.slo,
        now=_tuned_users(now),
        tried=tried,
        recommended=None if best is now else _configuration(flags, now, best),
        left_out=[
            "--max-model-len: the pool does not grow when it is lowered. Less than the longest request would "
            "cut requests.",
            "--enable-prefix-caching: it is on by default.",
        ],
        warnings=_planned_warnings(flags, best),
    )


def _sized(flags: SizingFlags, changes: Changes) -> PlannedSetting | _Refused:
    try:
        plan = fitted_plan(_changed(flags, changes))
        sized = size_engine(plan.deployment, plan.workload, length=PLANNED_LENGTH)
    except (DoesNotFitError, InputError) as problem:
        if not changes and isinstance(problem, InputError):
            raise
        return _Refused(reason=str(problem))
    if unmet := unmet_objectives(sized):
        where = f"{plan.deployment.tp * plan.deployment.pp} x {plan.deployment.gpu.name}"
        return _Refused(reason=" ".join(unmet_sentence(one, where=where) for one in unmet))
    return _setting(changes, plan, sized)


def _changed(flags: SizingFlags, changes: Changes) -> SizingFlags:
    named = {"tp" if name == "tensor_parallel_size" else name: value for name, value in changes.items()}
    return replace(flags, **named)  # type: ignore[arg-type]


def _setting(changes: Changes, plan: FittedPlan, sized: SizedEngine) -> PlannedSetting:
    replicas, wall = plan.deployment.replicas, sized.binding_wall
    low, x, high = sized.users_band
    running = wall.x * sized.pace.active(max(int(wall.x), 1))
    return PlannedSetting(
        changes=changes,
        deployment=plan.deployment,
        users=(low * replicas, x * replicas, high * replicas),
        wall=wall.name,
        kv_usage=running * sized.mean_blocks(running) / sized.band.blocks[1],
        running=running,
    )


def _climbs(flags: SizingFlags, base: PlannedSetting) -> Iterator[tuple[str, Sequence[object]]]:
    """Yields the flags to try beside a setting, each with the values to try one after the other."""
    deployment = base.deployment
    slots, budget = deployment.max_num_seqs, deployment.max_num_batched_tokens
    steps = range(1, DOUBLINGS + 1)
    slots_used = base.wall == "max_num_seqs" or base.running > FULL_ENOUGH * slots
    if slots_used and (more := [slots * 2**step for step in steps if slots * 2**step <= budget]):
        yield "max_num_seqs", more
    yield "max_num_batched_tokens", [budget * 2**step for step in steps]
    if less := [budget // 2**step for step in steps if budget // 2**step >= max(MIN_BATCHED_TOKENS, slots)]:
        yield "max_num_batched_tokens", less
    full = base.wall == "kv_cache" or base.kv_usage > FULL_ENOUGH
    if full and deployment.utilization < MAX_UTILIZATION - 0.005:
        yield "gpu_memory_utilization", [MAX_UTILIZATION]
    if "fp8" not in deployment.kv_dtype and "kv_cache_dtype" not in base.changes:
        yield "kv_cache_dtype", ["fp8"]
    if "tensor_parallel_size" not in base.changes:
        for tp in _other_splits(flags, deployment):
            yield "tensor_parallel_size", [tp]


def _other_splits(flags: SizingFlags, deployment: PlannedDeployment) -> list[int]:
    """Returns the other numbers of GPUs of a replica into which the same cards can be divided."""
    cards = deployment.tp * deployment.replicas
    if deployment.experts.data_parallel > 1 or flags.data_parallel_size:
        return []
    divisors = [tp for tp in range(1, cards + 1) if cards % tp == 0 and deployment.shape.num_heads % tp == 0]
    return [tp for tp in divisors if tp != deployment.tp]


def _climbed(
    flags: SizingFlags, base: PlannedSetting, climb: tuple[str, Sequence[object]]
) -> PlannedSetting | _Refused:
    """Tries the values of a flag while each holds noticeably more users than the one before."""
    name, values = climb
    # The number of cards stays the same: another split has other replicas.
    cards = base.deployment.tp * base.deployment.pp * base.deployment.replicas
    same_cards = replace(flags, gpus=cards)
    best = _sized(same_cards, {**base.changes, name: values[0]})
    for value in values[1:]:
        if isinstance(best, _Refused) or not _is_noticeable(base, best):
            break
        found = _sized(same_cards, {**base.changes, name: value})
        if isinstance(found, _Refused) or not _is_noticeable(best, found):
            break
        best = found
    return best


def _is_noticeable(before: PlannedSetting, after: PlannedSetting) -> bool:
    least = max(NOTICEABLE_USERS, PLANNED_SHARE * before.users[1])
    return after.users[1] - before.users[1] >= least


def _is_more(before: PlannedSetting, after: PlannedSetting) -> bool:
    return _is_noticeable(before, after) and _difference(before, after)[0] > 0


def _difference(before: PlannedSetting, after: PlannedSetting) -> tuple[float, float]:
    """Returns the ends of the difference in users.

    What is wrong of the card, the model and the lengths is wrong in both: lower ends are compared with lower
    ends, upper ends with upper ends.
    """
    found = [then - now for now, then in zip(before.users, after.users, strict=True)]
    return min(found), max(found)


def _tried(
    now: PlannedSetting, name: str, values: Sequence[object], one: PlannedSetting | _Refused
) -> TriedChange:
    if isinstance(one, _Refused):
        change = _flag_change(now, name, values[0])
        return TriedChange(change=change, verdict="not simulated", reason=one.reason.removesuffix("."))
    change = _flag_change(now, name, one.changes[name])
    if not _is_noticeable(now, one):
        return TriedChange(change=change, verdict="no gain")
    return TriedChange(
        change=change,
        verdict="more" if _is_more(now, one) else "perhaps",
        users=_tuned_users(one),
        difference=one.users[1] - now.users[1],
        difference_interval=_difference(now, one),
    )


def _without_effect(
    now: PlannedSetting, climbs: Sequence[tuple[str, Sequence[object]]], kept: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yields the flags that are not sized, and why."""
    names = {name for name, _ in climbs}
    slots = now.deployment.max_num_seqs
    reasons = {
        "max_num_seqs": f"{now.running:.0f} of {slots} slots are in use at the limit"
        if now.running <= FULL_ENOUGH * slots
        else f"more than max_num_batched_tokens ({now.deployment.max_num_batched_tokens}) cannot be",
        "gpu_memory_utilization": f"it is at {now.deployment.utilization:g} already"
        if now.deployment.utilization >= MAX_UTILIZATION - 0.005
        else f"the pool is {100 * now.kv_usage:.0f} % full at the limit",
        "kv_cache_dtype": f"it is {now.deployment.kv_dtype} already",
        "tensor_parallel_size": "there is one card, or no other number divides cards and heads",
    }
    for name in PLANNED_FLAGS:
        if name in kept:
            yield name, "kept, as you asked"
        elif name not in names:
            yield name, reasons[name]


def _not_tried(now: PlannedSetting, name: str, reason: str) -> TriedChange:
    return TriedChange(change=_flag_change(now, name, ""), verdict="not simulated", reason=reason)


def _flag_change(now: PlannedSetting, name: str, to: object) -> FlagChange:
    deployment = now.deployment
    present = {
        "max_num_seqs": deployment.max_num_seqs,
        "max_num_batched_tokens": deployment.max_num_batched_tokens,
        "gpu_memory_utilization": f"{deployment.utilization:g}",
        "kv_cache_dtype": deployment.kv_dtype,
        "tensor_parallel_size": deployment.tp,
    }
    return FlagChange(flag=cli_flag(name), now=str(present[name]), to=str(to))


def _tuned_users(one: PlannedSetting) -> TunedUsers:
    low, x, high = one.users
    return TunedUsers(x=x, interval=(low, high), wall=one.wall)


def _configuration(flags: SizingFlags, now: PlannedSetting, best: PlannedSetting) -> TunedConfiguration:
    interval: UsersInterval = (best.users[0], best.users[2])
    serve = ["vllm", "serve", best.deployment.model, *serve_flags(best.deployment, flags.quantization)]
    return TunedConfiguration(
        changes=[_flag_change(now, name, value) for name, value in best.changes.items()],
        users=_tuned_users(best),
        difference=best.users[1] - now.users[1],
        difference_interval=_difference(now, best),
        serve_command=shlex.join(serve),
        load_test_command=load_test_command(
            asdict(flags.workload) | {"workload": flags.workload_file},
            scenario="chat",
            host="http://SERVER:8000",
            now_x=now.users[1],
            users=interval,
        ),
        compare_command=None,
    )


def _planned_warnings(flags: SizingFlags, best: PlannedSetting) -> list[str]:
    warnings = [
        "Nothing was measured: after a load test of the server, analysis.tune RUN tells with its own engine.",
        *serve_notes(best.changes),
    ]
    if flags.workload.shared_prefix_tokens:
        warnings.append(
            "The load test has no flag for shared text: give it prompts that share theirs (--prompts)."
        )
    if best.deployment.replicas > 1:
        warnings.append("Users are spread evenly over the replicas: each is a server of its own.")
    return warnings
