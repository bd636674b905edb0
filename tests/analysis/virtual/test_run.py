"""Virtual runs: what their figures count."""

from dataclasses import replace

import numpy as np

from analysis.virtual.run import simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import Slo
from testing.inputs.engines import SMALL_ENGINE
from testing.runs.virtual import small_engine


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


def test_users_who_think_are_as_many_from_the_start_on() -> None:
    """The second mean pause has as many requests as the later ones: nobody comes again too soon."""
    pauses_s = np.random.default_rng(0).exponential(100.0, 2000)
    chatting = ChatBehaviour(conversations=[[(4, 2)]], pauses_s=pauses_s)
    run = simulate_users(Service(engine=small_engine(), chatting=chatting), 1000, requests=8000)
    (trace,) = run.traces
    sent_s = np.array([request.arrival_s for request in trace.requests])
    counts, _ = np.histogram(sent_s, bins=np.arange(0.0, 601.0, 50.0))
    # 500 requests are expected in 50 s; starts that are spread over the mean pause would make it 790.
    assert np.abs(counts - 500).max() < 110  # five standard deviations
