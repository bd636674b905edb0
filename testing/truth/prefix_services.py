"""Random services of long conversations in virtual time, and their true prefix-cache walls."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import gather_evidence
from analysis.evidence.turns import reusable_tokens
from analysis.memory.eviction import FOUND_LIMIT
from analysis.reading.runs import Run
from analysis.virtual.service import ChatBehaviour, Service
from analysis.walls.prefix_cache import PrefixWall, prefix_wall
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from testing.truth.virtual_load import VirtualLoad

TRUE_TURNS = 8000  # turns of a long level, which measures the truth
CYCLES, SETTLE_CYCLES = 20, 3  # turns of each user in a level, and before that while it settles
_MIN_TURNS = 150  # fewest turns of a level far below the wall
LOW, ACROSS = (0.15, 0.3), (0.25, 0.5, 1.0, 1.5)  # users of the levels, in multiples of the wall
SLO = Slo()


def service_of(seed: int) -> Service:
    """Draws a service with the seed: conversations of at most 2 to 12 turns, and a pool of 4 to 40 histories.

    The pauses are near-constant to heavier than exponential.
    """
    rng = np.random.default_rng(seed)
    block = int(rng.choice([16, 32]))
    turns = int(rng.integers(2, 13))
    message, answer = float(rng.uniform(40, 300)), float(rng.uniform(40, 200))
    shared = int(rng.choice([0, 0, 256]))
    spread = float(rng.uniform(0.2, 1.0))
    chats = [_chat(rng, turns, message, answer, spread, shared) for _ in range(400)]
    histories = [prompt + output for chat in chats for prompt, output in chat]
    pool = int(rng.uniform(4, 40) * (np.mean(histories) - shared) + shared)
    longest = max(histories) + 1
    engine = EngineConfig(
        num_gpu_blocks=max(pool, longest + block) // block + 2,
        block_size=block,
        max_model_len=longest,
        max_num_seqs=256,
        step_base_s=0.01,
        step_per_seq_s=float(rng.choice([0.0, 0.0002])),
        prefill_per_token_s=0.00005,
        jitter_cv=0.1,
    )
    mean_s, cv = float(rng.uniform(3, 30)), float(rng.choice([0.1, 0.5, 1.0, 1.5]))
    pauses = rng.gamma(cv**-2, mean_s * cv**2, 1000)
    chatting = ChatBehaviour(conversations=chats, pauses_s=pauses, shared_prefix_tokens=shared)
    return Service(engine=engine, chatting=chatting)


def _chat(
    rng: np.random.Generator, turns: int, message: float, answer: float, spread: float, shared: int
) -> list[tuple[int, int]]:
    found, history = [], shared
    for _ in range(int(rng.integers(max(turns // 2, 1), turns + 1))):
        words, output = (max(int(rng.gamma(spread**-2, mean * spread**2)), 33) for mean in (message, answer))
        found.append((history + words, output))
        history += words + output
    return found


def true_wall(service: Service, *, start: float) -> float:
    """Finds the users at which the hit rate falls below 0.9 of one user's, interpolated between whole users.

    A hit rate is cached tokens over the tokens that these conversations could have reused, so it depends
    little on which conversations were drawn. `start`: users at which the search begins.
    """
    known: dict[int, float] = {}
    shared = service.chatting.shared_prefix_tokens

    def rate(users: int) -> float:
        if users not in known:
            run = run_of(service, [users], seed=7, cycles=TRUE_TURNS / min(users, 20))
            rows, (begin, end, _) = run.requests, run.info.schedule[0]
            reusable = reusable_tokens(rows, True, service.engine.block_size, shared)
            inside = (rows.end_unix_s >= begin + 0.1 * (end - begin)) & ~np.isnan(reusable)
            known[users] = float(rows.cached_tokens[inside].sum() / reusable[inside].sum())
        return known[users]

    limit = FOUND_LIMIT * rate(1)
    low, high = max(round(start), 2), max(round(start), 2) + 1
    step = 1
    while rate(high) >= limit:
        low, high, step = high, high + step, 2 * step
    step = 1
    while low > 1 and rate(low) < limit:
        low, high, step = max(low - step, 1), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) >= limit else (low, middle)
    return low + (rate(low) - limit) / (rate(low) - rate(high))


def run_of(service: Service, levels: Sequence[int], *, seed: int, cycles: float = CYCLES) -> Run:
    """Simulates a load test of these levels. Each takes about as long as `cycles` turns of a user."""
    cycle_s = _cycle_s(service)
    load = VirtualLoad(service, SLO, seed=seed, settle_s=SETTLE_CYCLES * cycle_s)
    for users in levels:
        load.hold(users, (SETTLE_CYCLES + cycles) * cycle_s)
    load.finish()
    return load.run()


def _cycle_s(service: Service) -> float:
    """Returns the approximate seconds between two turns of a user."""
    output = np.mean([output for chat in service.chatting.conversations for _, output in chat])
    return float(np.mean(service.chatting.pauses_s) + output * service.engine.step_base_s)


def wall_of(run: Run) -> PrefixWall:
    """Returns the prefix-cache wall that the analysis computes from a run. Asserts that there is one."""
    found = maybe_wall_of(run)
    assert found is not None
    return found


def maybe_wall_of(run: Run) -> PrefixWall | None:
    """Returns the prefix-cache wall that the analysis computes from a run, or None."""
    evidence = gather_evidence([run], slo=SLO)
    assert evidence.pool is not None
    assert evidence.pairs is not None
    return prefix_wall(
        [run], evidence.levels, evidence.pool, shared_prefix=evidence.pairs.shared_prefix, limit=None,
        rng=np.random.default_rng(0),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """The true wall of a service in users, and the walls by formula alone and by a sweep across the wall."""

    true: float
    formula: PrefixWall
    swept: PrefixWall


def compare(seed: int) -> Case:
    """Measures the true wall of the service with this seed, and predicts it from two runs."""
    service = service_of(seed)
    rng = random.Random(seed)
    true = true_wall(service, start=wall_of(run_of(service, (2, 4), seed=seed)).x)
    low = _levels(true, LOW)
    cycles = max(CYCLES, _MIN_TURNS / low[0])
    formula = wall_of(run_of(service, low, seed=seed, cycles=cycles))
    swept = wall_of(run_of(service, _levels(true * rng.uniform(0.8, 1.25), ACROSS), seed=seed))
    return Case(true=true, formula=formula, swept=swept)


def _levels(true: float, shares: Sequence[float]) -> list[int]:
    return sorted({max(round(true * share), 1) for share in shares})
