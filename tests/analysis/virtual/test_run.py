"""Virtual runs: what their figures count."""

from dataclasses import replace

import numpy as np

from analysis.virtual.run import simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from testing.inputs.engines import SMALL_ENGINE


def test_who_waits_for_a_slot_is_counted_as_a_step_begins() -> None:
    """After a step's endings all slots are hardly ever taken: one in two ends at each of these steps."""
    engine = replace(SMALL_ENGINE, max_num_seqs=4)
    chatting = ChatBehaviour(conversations=[[(4, 2)]], pauses_s=np.array([0.001]))
    seen = [
        simulate_users(Service(engine=engine, chatting=chatting), users, requests=2000).figures(Slo())
        for users in (4, 12)
    ]
    assert seen[0].queue_fraction == 0.0
    assert seen[1].queue_fraction > 0.95
    assert seen[1].blocked_fraction == 0.0
