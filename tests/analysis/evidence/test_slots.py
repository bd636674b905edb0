"""The number of slots, as the server or the person states it, or as levels make it look like."""

from analysis.evidence.evidence import max_num_seqs_of
from testing.runs.virtual import level


def test_slots_are_as_stated_or_else_as_suspected():
    assert max_num_seqs_of([level(4)], stated=None) is None
    assert max_num_seqs_of([level(4)], stated=64) == 64
    suspected = [level(16, max_num_seqs=7, running=6.9), level(20, max_num_seqs=8, running=7.8)]
    assert max_num_seqs_of(suspected, stated=None) == 8


def test_more_requests_that_run_elsewhere_refute_suspected_slots():
    queue = level(26, max_num_seqs=24, running=23.1)
    assert max_num_seqs_of([queue, level(29, running=23.9)], stated=None) == 24
    assert max_num_seqs_of([queue, level(32, running=28.0)], stated=None) is None
