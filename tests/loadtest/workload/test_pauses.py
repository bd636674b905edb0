"""Pauses after failed requests."""

from loadtest.workload.pauses import LONGEST_ERROR_PAUSE_S, ErrorPauses


def test_a_pause_doubles_with_each_failure_in_a_row_up_to_its_longest() -> None:
    pauses = ErrorPauses(1.0)
    assert [pauses.failed() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_success_resets_the_pause() -> None:
    pauses = ErrorPauses(0.5)
    assert [pauses.failed(), pauses.failed()] == [0.5, 1.0]
    pauses.succeeded()
    assert pauses.failed() == 0.5


def test_retry_after_lengthens_a_pause_up_to_its_longest_but_never_shortens_it() -> None:
    pauses = ErrorPauses(1.0)
    assert pauses.failed(retry_after_s=5.0) == 5.0
    assert pauses.failed(retry_after_s=0.0) == 2.0
    assert pauses.failed(retry_after_s=3600.0) == LONGEST_ERROR_PAUSE_S


def test_without_a_first_pause_only_the_servers_wish_counts() -> None:
    pauses = ErrorPauses(0.0)
    assert [pauses.failed(), pauses.failed(), pauses.failed(retry_after_s=2.0)] == [0.0, 0.0, 2.0]
