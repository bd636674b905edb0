"""The server's gauge of the KV cache against the lengths of requests."""

import pytest

from analysis.evidence.evidence import gather_evidence
from analysis.evidence.gauge import gauge_of
from analysis.memory.block_distribution import block_distribution
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

SLO = Slo()


def test_the_servers_gauge_agrees_with_the_length_law(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(4, 8, 12), level_s=20.0))
    evidence = gather_evidence([read_run(find_runs(tmp_path / "r")[0])], slo=SLO)
    assert evidence.pairs is not None
    assert evidence.pool is not None
    found = gauge_of(evidence.runs, evidence.levels, evidence.pool, evidence.pairs)
    assert found is not None
    law = block_distribution(evidence.pairs, block_tokens=32)
    assert found.tokens_per_request == pytest.approx(law.mean * 32, rel=0.05)
    assert abs(found.off) < 0.03
    assert found.r2 > 0.8
