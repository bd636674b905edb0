"""Definitions of TTFT, TPOT and the rest, by examples worked out by hand."""

import numpy as np
import pytest

from analysis.levels import definitions as metrics


def test_ttft_counts_from_the_bytes_sent_to_the_first_chunk():
    found = metrics.ttft_s(sent_s=np.array([0.2, 0.2]), first_chunk_s=np.array([0.5, np.nan]))
    assert found[0] == pytest.approx(0.3)
    assert np.isnan(found[1])


def test_time_to_first_answer_skips_reasoning():
    assert metrics.ttfa_s(sent_s=np.array([0.1]), first_answer_s=np.array([2.1])) == pytest.approx([2.0])


def test_tpot_leaves_out_the_tokens_of_the_first_chunk():
    found = metrics.tpot_s(
        first_chunk_s=np.array([1.0, 1.0, 1.0, 1.0]),
        last_chunk_s=np.array([3.0, 3.0, 1.0, 3.0]),
        output_tokens=np.array([11.0, 11.0, 1.0, np.nan]),
        first_chunk_tokens=np.array([1.0, 3.0, 1.0, 1.0]),
    )
    assert found[:2] == pytest.approx([0.2, 0.25])
    assert np.isnan(found[2:]).all()


def test_decode_rate_is_one_over_tpot():
    found = metrics.decode_tok_s(np.array([0.02, 0.0, np.nan]))
    assert found[0] == 50.0
    assert np.isnan(found[1:]).all()


def test_gaps_are_itl_only_where_each_chunk_is_one_token():
    found = metrics.chunks_are_tokens(
        chunks=np.array([3.0, 3.0, 3.0]), output_tokens=np.array([3.0, 4.0, np.nan])
    )
    assert found.tolist() == [True, False, False]


def test_in_flight_counts_the_part_of_each_request_inside_the_window():
    found = metrics.mean_in_flight(
        begin_unix_s=np.array([0.0, 5.0, 20.0]), end_unix_s=np.array([15.0, 8.0, 30.0]), window=(10.0, 20.0)
    )
    assert found == pytest.approx(0.5)


def test_tokens_arrive_evenly_between_first_and_last():
    times = {"first_unix_s": np.array([10.0]), "last_unix_s": np.array([20.0]), "tokens": np.array([11.0])}
    assert metrics.tokens_by(9.0, **times).tolist() == [0.0]
    assert metrics.tokens_by(10.0, **times).tolist() == [1.0]
    assert metrics.tokens_by(15.0, **times) == pytest.approx([6.0])
    assert metrics.tokens_by(99.0, **times) == pytest.approx([11.0])
