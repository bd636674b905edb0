"""TODO."""

import math

import numpy as np

from analysis.evidence.lengths import Pairs
from analysis.evidence.step_time import Pace
from analysis.evidence.think_time import Thinking
from analysis.levels.context import Pool
from analysis.virtual.run import simulate_users
from analysis.virtual.service import CLIENT_TURNAROUND_S, Chatting, Service
from analysis.walls.block_law import Occupancy
from analysis.walls.kv_shift import Seen, Shift, shift_of, wall
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig

REPLAY_TOKENS = 2e6  # output tokens of the engine's replay: about a second
REPLAY_LIVES = 60  # of each user in it, at least
REPLAY_USERS = 300  # above, the formula's error is below one in a hundred users
REPLAY_ROUNDS, REPLAY_NEAR = 3, 0.02  # again where it moved the wall by more than a user, or than this share
REPLAY_PAIRS = 20_000  # drawn from, at most
BATCHED_TOKENS = 2048  # max_num_batched_tokens: vLLM's server default below 70 GiB
REPLAY_SD = 0.1  # what may be left between the engine and a real scheduler, in ln F and logit eps


def replayed(
    pairs: Pairs,
    pool: Pool,
    occupancy: Occupancy,
    slo: Slo,
    *,
    pace: Pace | None = None,
    thinking: Thinking | None = None,
    x: float,
) -> Shift:
    """How far the engine moves the formula, run on the measured pairs at the two whole numbers of users that
    hold the wall between them: first by the formula, then, where that was far off, by the engine."""
    for _ in range(REPLAY_ROUNDS):
        if not 1.0 <= x <= REPLAY_USERS:
            return Shift()
        low = math.floor(x)
        seen = [_replay(pairs, pool, users, pace, thinking) for users in (low, low + 1)]
        shift = shift_of(occupancy, seen, slo, near_users=x, prior=Shift(preempted_se=1.0, blocked_se=1.0))
        moved = wall(occupancy, slo, shift=shift, start=low)
        if abs(moved - x) <= max(1.0, REPLAY_NEAR * x):
            break
        x = moved
    return shift.widened(REPLAY_SD)


def _replay(pairs: Pairs, pool: Pool, users: int, pace: Pace | None, thinking: Thinking | None) -> Seen:
    """Without a pace every step takes one second, and pauses are so much longer. They are exponential: how
    their lengths are spread hardly matters."""
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
        chatting=Chatting(
            conversations=[
                [(int(s), int(o))] for s, o in zip(pairs.prompt[::every], pairs.output[::every], strict=True)
            ],
            pauses_s=CLIENT_TURNAROUND_S - pause_s * np.log1p(-(np.arange(1000) + 0.5) / 1000),
            shared_prefix_tokens=pairs.shared_prefix,
        ),
    )
    seen = simulate_users(service, users, requests=requests).figures(Slo())
    return Seen(
        users=users,
        preemptions=seen.preempted_fraction * seen.requests,
        finished=seen.requests,
        blocked=seen.blocked_fraction,
        scrapes=seen.requests / users,  # what is a lifetime apart is independent
    )
