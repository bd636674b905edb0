"""Absences of the server, from the ends of requests."""

import itertools

import pytest

from loadtest.record import Outcome
from loadtest.run.live.absence import REPORTED_S, AbsenceWatch
from loadtest.run.live.rows import LiveRow


def ok(sent: float, end: float) -> LiveRow:
    return LiveRow(end, 0.1, 0.01, "ok", sent_unix_s=sent, heard_unix_s=end)


def failed(end: float, outcome: Outcome = Outcome.CONNECT_ERROR, **changes: object) -> LiveRow:
    return LiveRow(end, None, None, outcome.value)._replace(**changes)  # type: ignore[arg-type]


def status(end: float, number: int, **changes: object) -> LiveRow:
    return failed(end, Outcome.HTTP_ERROR, http_status=number, sent_unix_s=end, **changes)


def watch(*rows: LiveRow, until: float = 1000.0, each: int = 1) -> AbsenceWatch:
    """Reports rows once a second, in the order of their ends; each: seconds between two reports."""
    seen = AbsenceWatch()
    waiting = sorted(rows, key=lambda row: row.end_unix_s)
    for now in range(0, round(until + REPORTED_S) + 1, each):
        while waiting and waiting[0].end_unix_s <= now:
            seen.add(waiting.pop(0))
        seen.look(float(now))
    return seen


def test_an_absence_lasts_from_the_first_failure_to_the_first_request_that_is_answered() -> None:
    seen = watch(ok(0, 9.5), failed(10.0), failed(11.0), failed(13.0), ok(16.2, 18.0))
    assert seen.away == [(10.0, 16.2)]
    assert seen.since_unix_s is None


def test_answers_that_break_off_begin_the_absence() -> None:
    broken = failed(9.8, Outcome.STREAM_ERROR, http_status=200, sent_unix_s=8.0, heard_unix_s=9.7)
    seen = watch(ok(0, 9), broken, failed(10.9), failed(12.9), ok(16.2, 18.0))
    assert seen.away == [(9.8, 16.2)]


def test_a_gateway_that_turns_some_requests_away_shows_no_absence() -> None:
    """Long answers: for seconds, every request that ends is a 503."""
    served = [ok(at, at + 8.0) for at in range(0, 80, 7)]
    seen = watch(*served, *[status(at + 0.5, 503) for at in range(80)])
    assert seen.away == []


def test_an_answer_under_way_shows_that_the_server_is_there() -> None:
    seen = AbsenceWatch()
    for at in range(90):
        seen.add(status(float(at), 503))
        seen.hear(0.0, at - 0.1)
        seen.look(float(at))
        assert not seen.is_lost(float(at))
    assert seen.since_unix_s is None


@pytest.mark.parametrize("number", [400, 429, 500])
def test_a_server_that_answers_otherwise_is_not_away(number: int) -> None:
    assert watch(*[status(float(at), number) for at in range(50)]).spans(50.0) == []


def test_one_lost_connection_is_no_absence() -> None:
    """Its user pauses for a second before the next request."""
    seen = watch(ok(0, 9), failed(10.0, Outcome.DISCONNECTED), ok(11.0, 12.0))
    assert seen.away == []


def test_connections_that_all_break_at_once_are_no_absence() -> None:
    broken = [failed(10.0 + user / 1000, Outcome.DISCONNECTED) for user in range(16)]
    assert watch(ok(0, 9), *broken, ok(11.0, 12.0)).away == []


def test_broken_answers_alone_are_no_absence() -> None:
    broken = [failed(float(at), Outcome.STREAM_ERROR, http_status=200) for at in range(20)]
    assert watch(ok(0, 0.5), *broken).spans(20.0) == []


def test_reports_of_several_workers_may_come_in_any_order() -> None:
    rows = [ok(0, 9.5), failed(10.0), failed(11.0), failed(13.0), ok(16.2, 18.0), ok(16.3, 17.0)]
    for order in itertools.permutations(rows):
        seen = AbsenceWatch()
        for row in order:
            seen.add(row)
        seen.look(30.0)
        assert seen.away == [(10.0, 16.2)]


def test_a_single_user_who_pauses_longer_and_longer_is_enough() -> None:
    at = list(itertools.accumulate([10.0, 1, 2, 4, 8, 16, 30]))
    rows = [
        failed(end, pause_s=float(pause)) for end, pause in zip(at, [1, 2, 4, 8, 16, 30, 30], strict=True)
    ]
    assert not watch(ok(0, 9), *rows, until=54.0).is_lost(54.0)
    seen = watch(ok(0, 9), *rows, until=56.0)
    assert seen.is_lost(56.0)
    assert seen.kinds == {"connect_error": 6}
    assert seen.calm_unix_s == at[5] + 30


def test_a_server_that_nobody_has_asked_again_is_not_lost() -> None:
    seen = watch(ok(0, 9), failed(10.0), failed(11.0), until=100.0)
    assert seen.since_unix_s == 10.0
    assert not seen.is_lost(100.0)


def test_two_absences_are_two() -> None:
    seen = watch(
        ok(0, 9), failed(10.0), failed(11.5), ok(13, 14), failed(20.0), failed(22.0), ok(25, 26), until=40
    )
    assert seen.away == [(10.0, 13.0), (20.0, 25.0)]
