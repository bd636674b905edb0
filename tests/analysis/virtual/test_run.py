"""Virtual runs: what their figures count."""

from dataclasses import replace

import numpy as np

from analysis.virtual.run import simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig

CONFIG = EngineConfig(
    num_gpu_blocks=65,
    block_size=4,
    max_model_len=128,
    max_num_seqs=16,
    max_num_batched_tokens=64,
    step_base_s=1.0,
    step_per_seq_s=0.01,
    prefill_per_token_s=0.01,
)


def test_who_waits_for_a_slot_is_counted_as_a_step_begins() -> None:
    """After a step's endings all slots are hardly ever taken: one in two ends at each of these steps."""
    engine = replace(CONFIG, max_num_seqs=4)
    chatting = ChatBehaviour(conversations=[[(4, 2)]], pauses_s=np.array([0.001]))
    seen = [
        simulate_users(Service(engine=engine, chatting=chatting), users, requests=2000).figures(Slo())
        for users in (4, 12)
    ]
    assert seen[0].queue_fraction == 0.0
    assert seen[1].queue_fraction > 0.95
    assert seen[1].blocked_fraction == 0.0
