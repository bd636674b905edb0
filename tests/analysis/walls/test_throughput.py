"""The wall of throughput: a fall that is sure."""

from analysis.walls.throughput import throughput_fall
from testing.runs.virtual import level


def test_throughput_falls_only_when_it_is_sure():
    rates = ((8, 800.0), (16, 1500.0), (24, 1300.0))
    sure = [level(users, output_tok_s=rate, output_tok_se=10.0) for users, rate in rates]
    assert throughput_fall(sure) == (16, 24)
    unsure = [level(users, output_tok_s=rate, output_tok_se=150.0) for users, rate in rates]
    assert throughput_fall(unsure) is None
