"""The wall of `max_num_seqs` slots."""

import math

from analysis.walls.max_num_seqs import max_num_seqs_wall, waiting_share


def test_slots_are_the_wall_themselves_without_think_time():
    assert max_num_seqs_wall(8, active=lambda _: 1.0) == 8.0


def test_thinking_users_may_outnumber_the_slots():
    found = max_num_seqs_wall(8, active=lambda _: 0.5)
    queue = [waiting_share(8, users, lambda _: 0.5) for users in (math.floor(found), math.floor(found) + 1)]
    assert queue[0] <= 0.1 < queue[1]
