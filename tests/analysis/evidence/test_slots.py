"""The number of slots, as the server or the person states it, or as levels make it look like."""

from analysis.evidence.evidence import max_num_seqs_of
from testing.runs.virtual import level


def test_slots_are_as_stated_or_else_as_suspected():
    assert max_num_seqs_of([level(4)], stated=None) is None
    assert max_num_seqs_of([level(4)], stated=64) == 64
    assert max_num_seqs_of([level(16, max_num_seqs=8), level(20, max_num_seqs=8)], stated=None) == 8
