"""The number of slots, as the server states it or as levels show it."""

from analysis.evidence.evidence import max_num_seqs_of
from testing.runs.virtual import level


def test_slots_are_as_stated_or_as_seen():
    assert max_num_seqs_of([level(4)], stated=None) is None
    assert max_num_seqs_of([level(4)], stated=64) == 64
    assert max_num_seqs_of([level(16, max_num_seqs=8), level(20, max_num_seqs=8)], stated=None) == 8


def test_slots_are_seen_where_three_numbers_of_users_leave_equally_many_running():
    def seen(*most_running):
        levels = zip((19, 22, 26, 32), most_running, strict=False)
        return max_num_seqs_of([level(users, most_running=most) for users, most in levels], stated=None)

    assert seen(17, 17, 17) == 17
    assert seen(17, 17) is None
    assert seen(17, 18, 17, 17) is None
    assert seen(None, 17, 17, 17) == 17
    near = [level(users, most_running=42) for users in (45, 48, 52)]  # prefill keeps the others waiting
    assert max_num_seqs_of(near, stated=None) is None
