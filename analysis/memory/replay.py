"""The measured lengths replayed in the simulated engine: how far the KV-cache formula is off at its wall."""

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

REPLAY_TOKENS = 2e6  # output tokens of the engine's replay: about a second
REPLAY_LIVES = 60  # of each user in it, at least
REPLAY_USERS = 300  # above, the formula's error is below one in a hundred users
REPLAY_ROUNDS, REPLAY_NEAR = 3, 0.02  # again where it moved the wall by more than a user, or than this share
REPLAY_PAIRS = 20_000  # drawn from, at most
BATCHED_TOKENS = 2048  # max_num_batched_tokens: vLLM's server default below 70 GiB
REPLAY_SD = 0.1  # what may be left between the engine and a real scheduler, in ln F and logit eps


def replayed_shift(
    pairs: LengthPairs,
    pool: Pool,
    occupancy: Occupancy,
    slo: Slo,
    *,
    pace: StepCost | None = None,
    thinking: Thinking | None = None,
    x: float,
) -> FormulaShift:
    """How far the engine moves the formula, at the two whole numbers of users around the wall. Where the
    engine places the wall far from the formula, the engine is run again there."""
    for _ in range(REPLAY_ROUNDS):
        if not 1.0 <= x <= REPLAY_USERS:
            return FormulaShift()
        low = math.floor(x)
        seen = [_replay(pairs, pool, users, pace, thinking) for users in (low, low + 1)]
        shift = measured_shift(
            occupancy, seen, slo, near_users=x, prior=FormulaShift(preempted_se=1.0, blocked_se=1.0)
        )
        moved = kv_wall_users(occupancy, slo, shift=shift, start=low)
        if abs(moved - x) <= max(1.0, REPLAY_NEAR * x):
            break
        x = moved
    return shift.widened(REPLAY_SD)


def _replay(
    pairs: LengthPairs, pool: Pool, users: int, pace: StepCost | None, thinking: Thinking | None
) -> LevelPressure:
    """The engine's pressure with `users` users. Without a pace every step takes one second, and pauses are
    scaled to that. Pauses are exponential: how their lengths are spread hardly matters."""
    output = float(pairs.output.mean())
    requests = max(int(REPLAY_TOKENS / 2 / output), REPLAY_LIVES * users)
    pause_s = thinking.think_s if thinking else 0.0
    if thinking and pace is None:
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
            step_base_s=pace.step_base_s if pace else 1.0,
            step_per_seq_s=pace.step_per_seq_s if pace else 0.0,
            prefill_per_token_s=(pace.prefill_per_token_s or 0.0) if pace else 0.0,
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
        scrapes=seen.requests / users,  # what is a request duration apart is independent
    )
