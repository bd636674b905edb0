"""Virtual users who talk over several turns."""

import pytest

from analysis.virtual.run import simulate_users
from testing.truth.prefix_services import SLO
from testing.truth.three_turns import three_turns


def test_plays_of_conversations_tell_the_hit_rate_of_their_window():
    """The cold start is left out: in it nothing can be found."""
    played = simulate_users(three_turns(), 4, requests=400, seed=1)
    begin_s, end_s = played.window
    inside = [one for one in played.traces[0].requests if begin_s <= (one.end_s or 0.0) <= end_s]
    hits = sum(one.cached_tokens for one in inside) / sum(one.prompt_tokens for one in inside)
    assert played.figures(SLO).prefix_hit_rate == pytest.approx(hits)
