"""Services in virtual time whose long prompts hold up the answers of others, and the true walls of stalls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.capacity.answer import recommend
from analysis.levels.level import load_points
from analysis.reading.runs import Run
from analysis.statistics.crossings import MISS_LIMIT, logit, p95_crossing
from analysis.virtual.run import simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from testing.truth.virtual_load import SETTLE_S, VirtualLoad

FEWEST, MOST = 4.0, 60.0
"""Users between which the wall of a random service must lie."""
SEARCH_REQUESTS, TRUE_REQUESTS = 3_000, 20_000
REQUESTS_A_LEVEL = 800
AROUND = (0.3, 0.6, 0.9, 1.2, 1.8)
"""Users of a sweep's levels, in multiples of the wall."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StallingService:
    """A service, the objective for its stalls, and the users at which 5 % of the answers miss it."""

    service: Service
    slo: Slo
    true: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StallSweep:
    """What one sweep says of the wall: whether it is named, where it is (nan: nowhere), and its interval."""

    true: float
    named: bool
    x: float
    interval: tuple[float, float]
    by_p95_x: float
    """Where a line between the p95s of neighbouring levels, as for TTFT and TPOT, would put it."""


def chats_and_documents(
    *,
    documents: int = 1,
    document_tokens: int = 4000,
    think_s: float = 1.0,
    seed: int = 0,
    **engine: object,
) -> Service:
    """Builds a service of short chats and, in `documents` of a hundred requests, a long prompt."""
    rng = np.random.default_rng(seed)
    chats = zip(rng.integers(40, 200, 198).tolist(), rng.integers(40, 80, 198).tolist(), strict=True)
    values: dict[str, object] = {
        "num_gpu_blocks": 6_001,
        "max_model_len": 16_384,
        "step_base_s": 0.01,
        "step_per_seq_s": 0.0002,
        "prefill_per_token_s": 0.0001,
        "jitter_cv": 0.1,
    }
    return Service(
        engine=EngineConfig(**(values | engine)),  # type: ignore[arg-type]
        chatting=ChatBehaviour(
            conversations=[*([turn] for turn in chats), *[[(document_tokens, 30)]] * (2 * documents)],
            pauses_s=rng.exponential(think_s, 500),
        ),
    )


def stalling_service(seed: int) -> StallingService:
    """Draws a service whose wall of stalls lies between FEWEST and MOST users."""
    rng = np.random.default_rng(seed)
    while True:
        budget = int(rng.choice([1024, 2048, 4096]))
        prefill_s = float(rng.uniform(0.00004, 0.0002))
        service = chats_and_documents(
            documents=int(rng.choice([1, 1, 2, 4])),
            document_tokens=int(rng.uniform(1.5, 3.0) * budget),
            think_s=float(rng.uniform(0.5, 4.0)),
            seed=int(rng.integers(1000)),
            step_base_s=float(rng.uniform(0.005, 0.02)),
            prefill_per_token_s=prefill_s,
            max_num_batched_tokens=budget,
        )
        stall_s = float(rng.uniform(0.5, 0.9)) * budget * prefill_s
        slo = Slo(ttft_p95_s=60.0, tpot_p95_s=5.0, stall_p95_s=stall_s)
        true = true_stall_wall(service, slo)
        if true is not None:
            return StallingService(service=service, slo=slo, true=true)


def true_stall_wall(service: Service, slo: Slo) -> float | None:
    """Finds the users at which 5 % of the answers stand still for too long; None if not within the bounds.

    A line in the logit of the share over ln users, through long levels around a first guess.
    """

    def share(users: int, requests: int, seed: int) -> float:
        return simulate_users(service, users, requests=requests, seed=seed).figures(slo).stall_miss

    low = round(FEWEST)
    if share(low, SEARCH_REQUESTS, 0) > MISS_LIMIT:
        return None
    high = low
    while share(high, SEARCH_REQUESTS, 0) <= MISS_LIMIT:
        low, high = high, round(1.4 * high)
        if high > MOST:
            return None
    users = sorted({low, round(math.sqrt(low * high)), high})
    logits = [logit(share(count, TRUE_REQUESTS, seed)) for seed, count in enumerate(users, start=1)]
    slope, level = np.polyfit(np.log(users), logits, 1)
    return float(math.exp((logit(MISS_LIMIT) - level) / slope))


def swept(one: StallingService, *, seed: int) -> StallSweep:
    """Sweeps across the wall with about REQUESTS_A_LEVEL a level, and asks the analysis."""
    answer = recommend([run_across(one, seed=seed)], slo=one.slo)
    wall = next((bound for bound in answer.bounds if bound.name == "stall"), None)
    points = load_points(
        answer.levels, lambda level: level.requests.stall_miss, lambda level: level.requests.stall_s.p95
    )
    line = p95_crossing(points, objective=one.slo.stall_p95_s or math.nan)
    return StallSweep(
        true=one.true,
        named=answer.headline.binding == "stall",
        x=math.nan if wall is None else wall.users_x,
        interval=(math.nan, math.nan) if wall is None else wall.interval_x,
        by_p95_x=math.nan if line is None else line.x,
    )


def run_across(one: StallingService, *, seed: int) -> Run:
    """Measures levels around the wall, with the time of every token."""
    users = [max(round(one.true * times), 1) for times in AROUND]
    return run_with_gaps(one.service, one.slo, users, seed=seed)


def run_with_gaps(
    service: Service, slo: Slo, users: Sequence[int], *, seed: int, level_s: float | None = None
) -> Run:
    """Measures levels of these users. level_s: by default, so long that REQUESTS_A_LEVEL end in each."""
    load = VirtualLoad(service, slo, seed=seed, with_gaps=True)
    cycle_s = float(np.mean(service.chatting.pauses_s)) + 60 * service.engine.step_base_s
    for count in users:
        load.hold(count, SETTLE_S + (level_s or REQUESTS_A_LEVEL * cycle_s / count))
    load.finish()
    return load.run()
