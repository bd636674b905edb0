"""Computes how the estimated number of users changes when one input changes."""

from collections.abc import Sequence
from dataclasses import replace

from analysis.answers.sizing import Effect
from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.engine import SizedEngine, latency_walls, size_engine
from analysis.sizing.latency.load import simulate_closed_loop
from analysis.sizing.latency.service import planned_service
from analysis.sizing.workload import PlannedWorkload
from analysis.virtual.processes import for_each
from loadtest.workload.distributions import Distribution

LONGER = 1.1
"""Factor on lengths and on think time."""
SLOWER = 1.2
"""Factor on the times of steps."""
SHORTER = 0.4
"""Factor on the requests that are simulated: both sides of a comparison have the same random numbers."""
LOWER_UTILIZATION = 0.02
"""Amount by which --gpu-memory-utilization is lowered."""


def effects_of_inputs(sized: SizedEngine) -> list[Effect]:
    """Changes one input at a time; returns the effects on the users of all replicas, largest first."""
    deployment = sized.deployment
    longer = _longer_workloads(sized)
    scales = _latency_scales(sized, list(longer.values()))
    changed = [
        (name, "10 % longer", _with_workload(sized, other, *scale))
        for (name, other), scale in zip(longer.items(), scales, strict=True)
    ]
    changed += [
        (name, change, _with_deployment(sized, other))
        for (name, change), other in _other_deployments(deployment).items()
    ]
    changed.append(("speed of the GPU", f"{SLOWER:g} times slower", _with_slower_steps(sized, SLOWER)))
    effects = [
        Effect(
            input=name,
            change=change,
            effect_users=round((x - sized.binding_wall.x) * deployment.replicas, 1) + 0.0,
        )
        for name, change, x in changed
    ]
    return sorted(effects, key=lambda effect: -abs(effect.effect_users))


def _longer_workloads(sized: SizedEngine) -> dict[str, PlannedWorkload]:
    workload, max_model_len = sized.workload, sized.deployment.max_model_len
    classes = [replace(one, think=_longer(one.think)) for one in workload.classes]
    return {
        "prompt_tokens": workload.stretched(prompt=LONGER, max_model_len=max_model_len),
        "output_tokens": workload.stretched(output=LONGER, max_model_len=max_model_len),
        **({"think_s": replace(workload, classes=classes)} if _thinks(workload) else {}),
    }


def _thinks(workload: PlannedWorkload) -> bool:
    return any(one.think.mean > 0 for one in workload.classes)


def _longer(pause: Distribution) -> Distribution:
    return Distribution(pause.kind, LONGER * pause.a, pause.b * (LONGER if pause.kind == "uniform" else 1.0))


def _other_deployments(deployment: PlannedDeployment) -> dict[tuple[str, str], PlannedDeployment]:
    lower, fewer = deployment.utilization - LOWER_UTILIZATION, max(deployment.max_num_seqs // 2, 1)
    return {
        ("gpu_memory_utilization", f"{lower:.2f}"): replace(deployment, utilization=lower),
        ("max_num_seqs", f"{fewer}"): replace(deployment, max_num_seqs=fewer),
        ("kv_cache_dtype", "fp8"): replace(deployment, kv_dtype="fp8"),
    }


def _latency_scales(sized: SizedEngine, workloads: Sequence[PlannedWorkload]) -> list[tuple[float, float]]:
    """Returns, for each of other workloads, the factors by which it changes the p95s of TTFT and of TPOT.

    Each workload is simulated with one number of users only, that of the first limit (wall).
    """
    if sized.curve is None:
        return [(1.0, 1.0)] * len(workloads)
    users = max(int(min(sized.binding_wall.x, sized.curve.reach)), 1)

    def p95_s(workload: PlannedWorkload) -> tuple[float, float]:
        service = planned_service(sized.deployment, workload, sized.steps, sized.pace, sized.band)
        return simulate_closed_loop(service, users, length=SHORTER).p95_s()

    now_s, *others_s = for_each(p95_s, [sized.workload, *workloads])
    return [(_ratio(then_s[0], now_s[0]), _ratio(then_s[1], now_s[1])) for then_s in others_s]


def _ratio(then_s: float, now_s: float) -> float:
    return then_s / now_s if now_s > 0 < then_s else 1.0


def _with_workload(sized: SizedEngine, workload: PlannedWorkload, ttft: float, tpot: float) -> float:
    """Returns the number of users at the first limit (wall) with another workload.

    The latency curve is not simulated again: its p95s are multiplied by the factors `ttft` and `tpot`.
    """
    others = size_engine(sized.deployment, workload, latency=False)
    return min([placed.x for placed in others.walls] + _latency_users(sized, ttft, tpot))


def _with_deployment(sized: SizedEngine, deployment: PlannedDeployment) -> float:
    """Returns the number of users at the first limit (wall) with a changed server; 0 if it would not start.

    TTFT and TPOT are assumed not to change.
    """
    try:
        others = size_engine(deployment, sized.workload, latency=False)
    except ValueError:
        return 0.0
    return min([placed.x for placed in others.walls] + _latency_users(sized, 1.0, 1.0))


def _with_slower_steps(sized: SizedEngine, scale: float) -> float:
    """Returns the number of users at the first limit (wall) if every step took `scale` times as long."""
    others = [placed.x for placed in sized.walls if placed.name not in ("ttft", "tpot")]
    return min(others + _latency_users(sized, scale, scale))


def _latency_users(sized: SizedEngine, ttft_scale: float, tpot_scale: float) -> list[float]:
    if sized.curve is None:
        return []
    walls = latency_walls(sized.curve, sized.workload.slo, ttft_scale=ttft_scale, tpot_scale=tpot_scale)
    return [placed.x for placed in walls]
