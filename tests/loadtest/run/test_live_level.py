"""What the live line counts, and what stops a sweep."""

from collections.abc import Sequence

import pytest

from loadtest.record import ClassObjectives, Outcome, Slo, UserClass
from loadtest.run.live.lateness import MIN_HEALTH_REPORTS
from loadtest.run.live.level import LiveLevel
from loadtest.run.live.line import describe, live_text
from loadtest.run.live.rows import LiveRow, live_row
from testing.runs.folders import row as record


def row(outcome: Outcome = Outcome.OK, **changes: object) -> LiveRow:
    values = {"end_unix_s": 1.0, "ttft_s": 0.2, "tpot_s": 0.02, "outcome": outcome.value}
    return LiveRow(**{**values, **changes})  # type: ignore[arg-type]


def refused(status: int | None = 503, **changes: object) -> LiveRow:
    nothing = {"ttft_s": None, "tpot_s": None, "http_status": status}
    return row(Outcome.HTTP_ERROR, **{**nothing, **changes})


def level_of(
    *rows: LiveRow,
    users: int = 8,
    lower: Sequence[LiveLevel] = (),
    slo: Slo = Slo(),  # noqa: B008 (frozen)
    classes: Sequence[UserClass] = (),
) -> LiveLevel:
    level = LiveLevel(users=users, start_unix_s=0.0, settle_s=0.0, slo=slo, lower=lower, classes=classes)
    for one in rows:
        level.add(one)
    return level


def test_the_line_names_the_kinds_of_errors() -> None:
    timeout = row(Outcome.TIMEOUT, ttft_s=None, tpot_s=None)
    level = level_of(*[row()] * 5, refused(), timeout, refused(), row(Outcome.EMPTY), refused(400))
    assert describe(level).endswith("10 requests, 5 errors: 2 x 503, 1 x timeout, 1 x empty, 1 x 400"), (
        describe(level)
    )
    assert describe(level_of(row())).endswith("1 requests, 0 errors")


def test_a_cancelled_request_is_neither_counted_nor_an_error() -> None:
    level = level_of(row(), row(Outcome.CANCELLED))
    assert (level.requests, level.errors) == (1, 0)


def test_failures_that_rise_with_users_stop_a_sweep_and_others_do_not() -> None:
    lowest = level_of(*[row()] * 90, *[refused(502)] * 10, users=1)
    alike = level_of(*[row()] * 88, *[refused(502)] * 12, lower=[lowest])
    more = level_of(*[row()] * 70, *[refused(502)] * 30, lower=[lowest])
    assert lowest.past_wall() is None
    assert alike.past_wall() is None
    assert more.past_wall() == "more than 1 % of the requests failed (30 x 502)"


@pytest.mark.parametrize(
    ("failed", "stops"),
    [
        (refused(429), True),
        (refused(503), True),
        (refused(400), False),
        (row(Outcome.EMPTY), False),
        (row(Outcome.NOT_SENT), False),
    ],
)
def test_only_failures_that_load_can_cause_are_a_wall(failed: LiveRow, stops: bool) -> None:
    lowest = level_of(*[row()] * 100, users=1)
    level = level_of(*[row()] * 90, *[failed] * 10, lower=[lowest])
    assert bool(level.past_wall()) is stops


def test_a_stated_limit_is_a_wall_in_the_lowest_level_too() -> None:
    lowest = level_of(*[row()] * 90, *[refused(429)] * 10, users=1)
    assert lowest.past_wall() is not None


def test_a_failed_request_misses_ttft_only_after_it_has_waited_too_long() -> None:
    quick = refused(waited_s=0.01)
    late = row(Outcome.TIMEOUT, ttft_s=None, tpot_s=None, waited_s=9.0)
    assert level_of(*[row()] * 20, *[quick] * 15, users=1).past_wall() is None
    level = level_of(*[row()] * 20, *[late] * 2, users=1)
    assert level.past_wall() == "TTFT p95 is above 2 s"
    assert "TTFT p95 at least 8.94 s" in describe(level)  # bins are 2 % wide


def test_a_late_generator_is_said_in_the_line_with_what_to_do() -> None:
    level = level_of(row())
    assert "late" not in live_text(level, level_s=30, left_s=None)
    for _ in range(MIN_HEALTH_REPORTS):
        level.add_health(1.0, "0", lag_s=0.001, cpu=0.3)
        level.add_health(1.0, "1", lag_s=0.038, cpu=0.3)
    said = live_text(level, level_s=30, left_s=None)
    assert said.startswith("this machine is late: 38 ms; use --processes or another machine | 8 users: ")


def test_stalls_stop_a_sweep_only_where_they_have_an_objective() -> None:
    rows = [*[row(stall_s=0.05)] * 90, *[row(stall_s=0.7)] * 10, row(stall_s=None)]
    assert level_of(*rows).past_wall() is None
    assert level_of(*rows, slo=Slo(stall_p95_s=0.8)).past_wall() is None
    assert level_of(*rows, slo=Slo(stall_p95_s=0.5)).past_wall() == "the p95 of stalls is above 0.5 s"
    still = [row(stall_s=0.7)] * 60
    assert level_of(*rows, *still, slo=Slo(stall_p95_s=0.5)).far_past_wall() is None
    assert level_of(*still, slo=Slo(stall_p95_s=0.5)).far_past_wall() is not None
    assert level_of(*still).far_past_wall() is None


def test_the_row_of_a_request_has_its_longest_gap() -> None:
    assert live_row(record(chunk_s=[0.1, 0.2, 0.9, 1.0])).stall_s == pytest.approx(0.7)
    assert live_row(record(chunk_s=[0.1])).stall_s is None
    assert live_row(record(chunk_s=[])).stall_s is None


def test_each_class_is_judged_by_its_own_objectives() -> None:
    strict = UserClass(
        name="chat", prompt_tokens="9", output_tokens="9", objectives=ClassObjectives(ttft_p95_s=0.1)
    )
    loose = UserClass(
        name="rag", prompt_tokens="9", output_tokens="9", objectives=ClassObjectives(tpot_p95_s=0.5)
    )
    rows = [
        *[row(user_class="chat", ttft_s=0.05)] * 25,
        *[row(user_class="rag", ttft_s=1.5, tpot_s=0.3)] * 75,
    ]
    late = [row(user_class="chat", ttft_s=0.15)] * 5
    assert level_of(*rows).past_wall() == "TPOT p95 is above 0.1 s"
    assert level_of(*rows, classes=[strict, loose]).past_wall() is None
    assert level_of(*rows, *late, classes=[strict, loose]).past_wall() == (
        "TTFT p95 of class 'chat' is above 0.1 s"
    )
    assert level_of(*rows, *late * 15, classes=[strict, loose]).far_past_wall() is None
    far = level_of(*rows, *late * 25, classes=[strict, loose])
    assert far.far_past_wall() == "more than half of the requests missed an objective"
    assert far.ttft_p95_s() == level_of(*rows, *late * 25).ttft_p95_s()
