"""Simulates requests of the measured lengths, to see how far the KV-cache formula is off at its limit."""

import math
from collections.abc import Sequence

import numpy as np

from analysis.evidence.lengths import LengthPairs
from analysis.evidence.step_time import StepCost
from analysis.evidence.think_time import Thinking, active_of
from analysis.levels.context import Pool
from analysis.memory.block_distribution import Occupancy
from analysis.memory.formula_shift import FormulaShift, LevelPressure, kv_wall_users, measured_shift
from analysis.statistics.crossings import MISS_LIMIT
from analysis.virtual.run import simulate_users
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, ChattingClass, Service, mixed
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig

REPLAY_TOKENS = 2e6  # output tokens of a replay: about a second of computing
REPLAY_REQUESTS_EACH = 60  # requests of each user in a replay, at least
REPLAY_USERS = 300  # above this, the formula is off by less than one in a hundred users
REPLAY_ROUNDS = 3  # replays at most
REPLAY_NEAR = 0.02  # share of the wall: if it moves by more, and by more than a user, the engine runs again
REPLAY_PAIRS = 20_000  # length pairs in a replay, at most
BATCHED_TOKENS = 2048  # max_num_batched_tokens: vLLM's server default below 70 GiB
LATENCY_REQUESTS, LATENCY_REQUESTS_EACH = 600, 12  # requests of a replay for latency: in all, and a user
LATENCY_REACH = 6.0  # times the users at which the search for a missed objective begins
REPLAY_SD = 0.1  # remaining error against a real scheduler, in ln F and logit eps


def replayed_shift(
    pairs: LengthPairs,
    pool: Pool,
    occupancy: Occupancy,
    slo: Slo,
    *,
    step_cost: StepCost | None = None,
    thinking: Thinking | None = None,
    x: float,
) -> FormulaShift:
    """Returns the formula's shift, measured in the simulated engine near its KV-cache limit of `x` users.

    The engine runs with the whole numbers of users below and above `x`. If the shift moves the KV-cache limit
    far, the engine runs again at the new limit, at most REPLAY_ROUNDS times in total. If it would have to run
    at a limit outside 1 to REPLAY_USERS users, the result is the default FormulaShift.
    """
    for _ in range(REPLAY_ROUNDS):
        if not 1.0 <= x <= REPLAY_USERS:
            return FormulaShift()
        low = math.floor(x)
        seen = [_replay(pairs, pool, users, step_cost, thinking) for users in (low, low + 1)]
        shift = measured_shift(
            occupancy, seen, slo, near_users=x, prior=FormulaShift(preempted_se=1.0, blocked_se=1.0)
        )
        moved = kv_wall_users(occupancy, slo, shift=shift, start=low)
        if abs(moved - x) <= max(1.0, REPLAY_NEAR * x):
            break
        x = moved
    return shift.widened(REPLAY_SD)


def replayed_latency_users(
    pairs: LengthPairs,
    pool: Pool,
    slo: Slo,
    *,
    step_cost: StepCost,
    thinking: Thinking | None = None,
    max_num_seqs: int | None = None,
    start: float,
) -> float | None:
    """Returns the users of one engine at which TTFT or TPOT misses its objective in the simulated engine.

    Requests may wait for memory and be preempted as often as they like. The search begins at `start` users;
    the result is at least this number. None where no objective is missed up to LATENCY_REACH times as many.
    """

    def misses(users: int) -> bool:
        slots = min(max_num_seqs or users, users)
        service = _service(pairs, pool, slots, step_cost, thinking)
        requests = max(LATENCY_REQUESTS, LATENCY_REQUESTS_EACH * users)
        seen = simulate_users(service, users, requests=requests).figures(slo)
        return max(seen.ttft_miss, 0.0 if math.isnan(seen.tpot_miss) else seen.tpot_miss) > MISS_LIMIT

    low = max(math.floor(start), 1)
    high = low
    while not misses(high):
        low, high = high, math.ceil(1.4 * high)
        if high > min(LATENCY_REACH * start, REPLAY_USERS):
            return None
    while high - low > max(1, 0.05 * low):
        middle = (low + high) // 2
        low, high = (low, middle) if misses(middle) else (middle, high)
    return float(low)


def _replay(
    pairs: LengthPairs, pool: Pool, users: int, step_cost: StepCost | None, thinking: Thinking | None
) -> LevelPressure:
    """Runs the simulated engine with `users` users and returns the preemptions and the blocked time.

    If `step_cost` is None, every step takes one second, and pauses are set so that a user's share of the time
    in flight stays the same.
    """
    output = float(pairs.output.mean())
    service = _service(pairs, pool, users, step_cost, thinking, users_at_whole_steps=users)
    requests = max(int(REPLAY_TOKENS / 2 / output), REPLAY_REQUESTS_EACH * users)
    seen = simulate_users(service, users, requests=requests).figures(Slo())
    return LevelPressure(
        users=users,
        preemptions=seen.preempted_fraction * seen.requests,
        finished=seen.requests,
        blocked=seen.blocked_fraction,
        scrapes=seen.requests / users,  # scrapes a request duration apart are independent
    )


def _service(
    pairs: LengthPairs,
    pool: Pool,
    slots: int,
    step_cost: StepCost | None,
    thinking: Thinking | None,
    *,
    users_at_whole_steps: int | None = None,
) -> Service:
    """Returns the simulated engine with the measured lengths.

    Pauses have an exponential distribution, as its shape hardly matters. users_at_whole_steps: without
    `step_cost`, a step takes one second; pauses are then such that so many users are as active as measured.
    """
    longest = int((pairs.prompt + pairs.output).max())
    whole_steps = users_at_whole_steps if step_cost is None else None

    def chatting(mine: LengthPairs, position: int | None, texts: Sequence[float]) -> ChatBehaviour:
        pause_s = _pause_s(mine, thinking, position, whole_steps)
        every = -(-len(mine) // REPLAY_PAIRS)
        return ChatBehaviour(
            conversations=[
                [(int(s), int(o))] for s, o in zip(mine.prompt[::every], mine.output[::every], strict=True)
            ],
            pauses_s=CLIENT_TURNAROUND_S - pause_s * np.log1p(-(np.arange(1000) + 0.5) / 1000),
            shared_prefix_tokens=mine.shared_prefix,
            shared_texts=texts,
        )

    classes = [
        ChattingClass(
            name=one.name, weight=one.weight, chatting=chatting(one.pairs, position, one.shared_texts)
        )
        for position, one in enumerate(pairs.classes)
        if len(one.rows)
    ]
    shares = any(one.pairs.shared_prefix for one in pairs.classes) or pairs.shared_prefix > 0
    return Service(
        engine=EngineConfig(
            num_gpu_blocks=1 + max(pool.blocks, -(-longest // pool.block_tokens)),
            block_size=pool.block_tokens,
            max_model_len=longest,
            max_num_seqs=slots,
            max_num_batched_tokens=max(BATCHED_TOKENS, slots),
            step_base_s=step_cost.step_base_s if step_cost else 1.0,
            step_per_seq_s=step_cost.step_per_seq_s if step_cost else 0.0,
            prefill_per_token_s=(step_cost.prefill_per_token_s or 0.0) if step_cost else 0.0,
            enable_prefix_caching=shares,
        ),
        chatting=mixed(classes) if classes else chatting(pairs, None, (1.0,)),
    )


def _pause_s(
    pairs: LengthPairs, thinking: Thinking | None, position: int | None, users_at_whole_steps: int | None
) -> float:
    """Returns the mean pause of users, in seconds. position: that of their class; None: of all users."""
    if thinking is None:
        return 0.0
    if users_at_whole_steps is None:
        return thinking.think_s if position is None else thinking.classes[position].think_s
    active = active_of(thinking, position)(users_at_whole_steps)
    return float(pairs.output.mean()) * (1.0 / active - 1.0)
