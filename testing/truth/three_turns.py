"""A service of conversations whose prefix-cache wall lies near 18 users."""

from dataclasses import replace

import numpy as np

from analysis.virtual.service import ChatBehaviour, Service
from loadtest.simulator.engine.config import EngineConfig


def three_turns(**changes: object) -> Service:
    """Builds a service with conversations of three turns, each about 200 tokens in and 100 out.

    Users think for 20 s on average. The pool holds about 20 whole conversations. `changes`: engine fields.
    """
    rng = np.random.default_rng(0)
    chats = []
    for _ in range(100):
        history, turns = 0, []
        for _ in range(3):
            words, output = int(rng.integers(100, 300)), int(rng.integers(50, 150))
            turns.append((history + words, output))
            history += words + output
        chats.append(turns)
    engine = EngineConfig(
        num_gpu_blocks=1001, max_model_len=2048, step_base_s=0.01, prefill_per_token_s=0.00005, jitter_cv=0.1
    )
    chatting = ChatBehaviour(conversations=chats, pauses_s=rng.exponential(20.0, 500))
    return Service(engine=replace(engine, **changes), chatting=chatting)  # type: ignore[arg-type]
