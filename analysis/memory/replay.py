"""Simulates requests of the measured lengths, to see how far the KV-cache formula is off at its limit."""

import math

import numpy as np

from analysis.evidence.lengths import LengthPairs
from analysis.evidence.step_time import StepCost
from analysis.evidence.think_time import Thinking
from analysis.levels.context import Pool
from analysis.memory.block_distribution import Occupancy
from analysis.memory.formula_shift import FormulaShift, LevelPressure, kv_wall_users, measured_shift
from analysis.virtual.run import simulate_users
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig

REPLAY_TOKENS = 2e6  # output tokens of a replay: about a second of computing
REPLAY_REQUESTS_EACH = 60  # requests of each user in a replay, at least
REPLAY_USERS = 300  # above this, the formula is off by less than one in a hundred users
REPLAY_ROUNDS = 3  # replays at most
REPLAY_NEAR = 0.02  # share of the wall: if it moves by more, and by more than a user, the engine runs again
REPLAY_PAIRS = 20_000  # length pairs in a replay, at most
BATCHED_TOKENS = 2048  # max_num_batched_tokens: vLLM's server default below 70 GiB
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


def _replay(
    pairs: LengthPairs, pool: Pool, users: int, step_cost: StepCost | None, thinking: Thinking | None
) -> LevelPressure:
    """Runs the simulated engine with `users` users and returns the preemptions and the blocked time.

    If `step_cost` is None, every step takes one second, and pauses are set so that a user's share of the time
    in flight stays the same. Pauses have an exponential distribution, as its shape hardly matters.
    """
    output = float(pairs.output.mean())
    requests = max(int(REPLAY_TOKENS / 2 / output), REPLAY_REQUESTS_EACH * users)
    pause_s = thinking.think_s if thinking else 0.0
    if thinking and step_cost is None:
        pause_s = output * (1.0 / thinking.active(users) - 1.0)
    longest = int((pairs.prompt + pairs.output).max())
    every = -(-len(pairs) // REPLAY_PAIRS)
    service = Service(
        engine=EngineConfig(
            num_gpu_blocks=1 + max(pool.blocks, -(-longest // pool.block_tokens)),
            block_size=pool.block_tokens,
            max_model_len=longest,
            max_num_seqs=users,
            max_num_batched_tokens=max(BATCHED_TOKENS, users),
            step_base_s=step_cost.step_base_s if step_cost else 1.0,
            step_per_seq_s=step_cost.step_per_seq_s if step_cost else 0.0,
            prefill_per_token_s=(step_cost.prefill_per_token_s or 0.0) if step_cost else 0.0,
            enable_prefix_caching=pairs.shared_prefix > 0,
        ),
        chatting=ChatBehaviour(
            conversations=[
                [(int(s), int(o))] for s, o in zip(pairs.prompt[::every], pairs.output[::every], strict=True)
            ],
            pauses_s=CLIENT_TURNAROUND_S - pause_s * np.log1p(-(np.arange(1000) + 0.5) / 1000),
            shared_prefix_tokens=pairs.shared_prefix,
        ),
    )
    seen = simulate_users(service, users, requests=requests).figures(Slo())
    return LevelPressure(
        users=users,
        preemptions=seen.preempted_fraction * seen.requests,
        finished=seen.requests,
        blocked=seen.blocked_fraction,
        scrapes=seen.requests / users,  # scrapes a request duration apart are independent
    )
