"""Fits a simulated service (a twin) to a load test.

Three things are fitted: step times, the overhead between engine and client, and how people chat. The
module reads no files and no presets: its input is the `Evidence` of runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from analysis.cli import RefusedError
from analysis.evidence.evidence import MIN_PAIRS, Evidence, max_num_seqs_of
from analysis.evidence.lifetimes import known_lengths
from analysis.levels.level import Level
from analysis.reporting.words import words
from analysis.statistics.arrays import Floats
from analysis.twin.chatting import chatting_of
from analysis.twin.step_fit import StepHistory, StepSums, solve_step_terms, step_sums, why_no_steps
from analysis.virtual.run import simulate_users
from analysis.virtual.service import Service, typical_duration_s
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.routers import ROUTERS

DRAWS = 24  # resampled services, which show how uncertain the fit is
MAX_PREEMPTED, MAX_WAITING = 0.02, 0.1  # largest shares in a calm level, where every gap is one step
NEGLIGIBLE_OVERHEAD = 0.01  # share of the duration of a request: far below the error of its median TTFT
OVERHEAD_REQUESTS = 1500  # least number of requests to simulate for the engine's own median TTFT
DEFAULT_SLOTS, DEFAULT_BUDGET = 256, 2048  # vLLM 0.32's server defaults below 70 GiB


class CalibrationError(RefusedError):
    """Raised when no simulated copy of the server (twin) can be fitted to a run.

    Its message says why in one sentence. The program then exits with code 3.
    """


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServiceFit:
    """A service fitted to levels, and resampled services that show how uncertain the fit is."""

    service: Service
    draws: Sequence[Service]
    """Services fitted to resampled stretches of time and resampled conversations."""
    fitted_users: Sequence[int]
    replicas: int = 1
    """Number of replicas that the users of the runs were spread over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFlags:
    """Settings that vLLM was started with and does not export.

    None: not given. Then vLLM's default is used, except for max_num_seqs: this is taken from the run's
    record, else estimated from its levels, and only then vLLM's default.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    async_scheduling: bool | None = None


def calibrate(
    evidence: Evidence,
    levels: Sequence[Level],
    flags: ServerFlags,
    *,
    replicas: int = 1,
    router: str = "least-loaded",
    seed: int = 0,
    overhead_requests: int = OVERHEAD_REQUESTS,
) -> ServiceFit:
    """Fits a service to the trusted levels among `levels`.

    Levels of the evidence that are not among `levels` are left out of everything: the step times, the
    overhead, lengths, pauses and the suspected max_num_seqs. Their requests count only as load on a level
    beside them.

    replicas, router: how many replicas served the run, and how users were spread over them.
    overhead_requests: least number of requests of a simulation of the engine's own TTFT. Raises
    CalibrationError when token counts or block counts are missing. Raises it also when the step times cannot
    be fitted, because no trusted level has few preemptions, little waiting and single tokens.
    """
    rng = np.random.default_rng(seed)
    _require_counts(evidence)
    usable = [level for level in levels if level.trusted]
    steps = _steps(evidence, levels, replicas)
    left_out = [level for level in evidence.levels if not any(level is one for one in levels)]
    chatting = chatting_of(evidence, usable, left_out=left_out)
    terms = solve_step_terms(np.sum([step.total for step in steps], axis=0))
    base = Service(engine=_engine(evidence, usable, flags, terms, _jitter(steps)), chatting=chatting)
    fitted = _with_overhead(base, evidence, usable, _Spread(replicas, router, overhead_requests))
    draws = [_draw(fitted, steps, rng) for _ in range(DRAWS)]
    users = [level.users for level in usable]
    return ServiceFit(service=fitted, draws=draws, fitted_users=users, replicas=replicas)


def _require_counts(evidence: Evidence) -> None:
    if evidence.pool is None:
        raise CalibrationError(
            "The twin needs to know how many KV blocks the server has, which its /metrics did not say."
        )
    if evidence.pairs is None:
        known = sum(int(known_lengths(run.requests).sum()) for run in evidence.runs)
        raise CalibrationError(
            f"The twin needs at least {MIN_PAIRS} finished requests with the server's token counts: this run "
            f"has {known}."
        )


def _steps(evidence: Evidence, levels: Sequence[Level], replicas: int) -> list[StepSums]:
    """Returns the sums of each calm trusted level. Raises CalibrationError if there are none."""
    trusted = [level for level in levels if level.trusted]
    calm = [level for level in trusted if _is_calm(level)]
    history = {run.info.run_id: StepHistory.of(run.requests) for run in evidence.runs}
    steps = [fit for level in calm if (fit := step_sums(history[level.run_id], level, replicas))]
    if steps:
        return steps
    if not trusted:
        why = "; ".join(sorted({words(doubt) for level in levels for doubt in level.why_not}))
        raise CalibrationError(f"No level to fit the twin to can be trusted{why and ': '}{why}.")
    if not calm:
        raise CalibrationError(
            "In every trusted level requests waited or were preempted, so its gaps are not single steps: run "
            "a level with fewer users."
        )
    reasons = {level.users: why_no_steps(history[level.run_id], level) for level in calm}
    said = "; ".join(
        f"with {users} user{'s' * (users > 1)} {reason}" for users, reason in sorted(reasons.items())
    )
    raise CalibrationError(f"The time of a step cannot be fitted: {said}.")


def _is_calm(level: Level) -> bool:
    preempted = level.server.preemptions / max(level.requests.finished, 1)
    return not preempted > MAX_PREEMPTED and not level.server.waiting_fraction > MAX_WAITING


def _jitter(steps: Sequence[StepSums]) -> float:
    return float(np.median([step.residual_cv for step in steps]))


def _engine(
    evidence: Evidence, levels: Sequence[Level], flags: ServerFlags, terms: Floats, jitter_cv: float
) -> EngineConfig:
    info = evidence.runs[-1].info
    pool = evidence.pool
    assert pool is not None
    stated = flags.max_num_seqs or info.server.max_num_seqs
    slots = max_num_seqs_of(levels, stated=stated) or DEFAULT_SLOTS
    asynchronous = info.gpu is not None and info.server.simulated is None
    engine = EngineConfig(
        num_gpu_blocks=pool.blocks + 1,
        block_size=pool.block_tokens,
        max_model_len=min(info.server.max_model_len or pool.tokens, pool.tokens),
        max_num_seqs=slots,
        max_num_batched_tokens=max(flags.max_num_batched_tokens or DEFAULT_BUDGET, slots),
        enable_prefix_caching=info.server.enable_prefix_caching is not False,
        # vLLM 0.32 turns async scheduling on by default on GPUs, and off on CPUs.
        async_scheduling=asynchronous if flags.async_scheduling is None else flags.async_scheduling,
        jitter_cv=jitter_cv,
        step_base_s=1.0,
    )
    return _with_terms(engine, terms)


def _with_terms(engine: EngineConfig, terms: Floats) -> EngineConfig:
    base, per_seq, per_kv_token, per_prompt_token = (float(term) for term in terms)
    return replace(
        engine,
        step_base_s=max(base, 1e-6),
        step_per_seq_s=per_seq,
        step_per_kv_token_s=per_kv_token,
        prefill_per_token_s=per_prompt_token,
    )


@dataclass(frozen=True, slots=True)
class _Spread:
    """How users are spread over replicas, and how many requests of them are simulated at least."""

    replicas: int
    router: str
    requests: int


def _with_overhead(base: Service, evidence: Evidence, levels: Sequence[Level], spread: _Spread) -> Service:
    """Returns the service with a fitted overhead between engine and client.

    The overhead is a straight line in the users of a replica. The line is fitted to the measured median TTFT
    minus the median TTFT of the simulated engine.
    """
    calm = sorted(
        (level for level in levels if _is_calm(level) and level.requests.ttft_s.p50),
        key=lambda level: level.users,
    )
    if not calm:
        return base
    chosen = [calm[position] for position in sorted({0, len(calm) // 3, 2 * len(calm) // 3, len(calm) - 1})]
    fitted = base
    for _ in range(2):  # the overhead lengthens a user's cycle and so lowers the load: fit again
        beyond = [_beyond_engine_s(fitted, level, evidence, spread) for level in chosen]
        design = np.column_stack([np.ones(len(chosen)), [level.users / spread.replicas for level in chosen]])
        (alone, each), _ = optimize.nnls(design, np.maximum(np.array(beyond), 0.0))
        fitted = replace(fitted, overhead_s=float(alone), overhead_per_user_s=float(each))
        if all(_is_negligible(fitted, level.users / spread.replicas) for level in chosen):
            break
    return fitted


def _is_negligible(service: Service, users: float) -> bool:
    """Whether the overhead changes the load, which follows from a user's cycle, by less than can be seen."""
    return service.overhead_at(users) < NEGLIGIBLE_OVERHEAD * typical_duration_s(service, users)


def _beyond_engine_s(service: Service, level: Level, evidence: Evidence, spread: _Spread) -> float:
    run = simulate_users(
        service,
        level.users,
        requests=max(spread.requests, 20 * level.users),
        replicas=spread.replicas,
        route=ROUTERS[spread.router](),
    )
    assert level.requests.ttft_s.p50 is not None
    engine_s = run.figures(evidence.slo).ttft_p50_s - service.overhead_at(level.users / spread.replicas)
    return level.requests.ttft_s.p50 - engine_s


def _draw(fitted: Service, steps: Sequence[StepSums], rng: np.random.Generator) -> Service:
    terms = solve_step_terms(np.sum([step.resampled(rng) for step in steps], axis=0))
    return replace(
        fitted,
        engine=_with_terms(fitted.engine, terms),
        chatting=fitted.chatting.resampled(rng),
    )
