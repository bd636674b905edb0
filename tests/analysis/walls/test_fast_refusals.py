"""Servers and gateways that refuse at once what they cannot take; users who are refused pause."""

from pathlib import Path

import pytest

from loadtest.record import Outcome, RequestRecord, Slo
from testing.runs.answers import answer_for
from testing.runs.folders import make_folder, row

PLACES, LEVEL_S = 6, 60.0
ANSWER_S, REFUSAL_S = 0.5, 0.002
SLO = Slo(tpot_p95_s=1.0)


def refusal(begin: float, at: float, user: int, users: int, pause_s: float, status: int) -> RequestRecord:
    return row(
        request_id=f"{begin}-{user}-{at}", user=user, level_users=users, start_unix_s=begin + at,
        sent_s=0.0005, chunk_s=[], end_s=REFUSAL_S, output_tokens=None, outcome=Outcome.HTTP_ERROR,
        http_status=status, error=f"too many requests, 6 of 6 slots are taken (id {user}{at:.0f})",
        pause_s=pause_s,
    )  # fmt: skip


def answered(begin: float, at: float, user: int, users: int) -> RequestRecord:
    return row(
        request_id=f"{begin}-{user}-{at}", user=user, level_users=users, start_unix_s=begin + at,
        chunk_s=[0.1, 0.3, 0.49], end_s=ANSWER_S,
    )  # fmt: skip


def level_rows(begin: float, users: int, *, places: int, status: int) -> list[RequestRecord]:
    """Users up to `places` are always served; the others never, and they pause 1, 2, 4 ... 30 s."""
    rows = []
    for user in range(users):
        at, pause_s = user / users, 1.0
        while at < LEVEL_S:
            if user < places:
                rows.append(answered(begin, at, user, users))
                at += ANSWER_S + 0.001
            else:
                rows.append(refusal(begin, at, user, users, pause_s, status))
                at, pause_s = at + REFUSAL_S + pause_s, min(2 * pause_s, 30.0)
    return rows


def write_levels(folder: Path, *levels: int, places: int, status: int) -> None:
    rows, schedule = [], []
    for number, users in enumerate(levels):
        begin = 100.0 + 100.0 * number
        rows += level_rows(begin, users, places=places, status=status)
        schedule.append((begin + 1.0, begin + LEVEL_S - 1.0, users))
    make_folder(folder, rows, schedule=schedule, ended_unix_s=100.0 + 100.0 * len(levels))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("levels", [(2, 4, 6, 7), (2, 4, 6, 8), (1, 2, 4, 8, 16)])
def test_refusals_that_come_at_once_are_an_error_wall(tmp_path: Path, status: int, levels: tuple[int, ...]):
    write_levels(tmp_path / "r", *levels, places=PLACES, status=status)
    answer = answer_for(tmp_path, slo=SLO)
    assert [level.trusted for level in answer.levels] == [True] * len(levels), answer.levels[-1].why_not
    assert answer.headline.binding == "errors"
    assert answer.headline.p_binding == {"errors": 1.0}
    below = max(users for users in levels if users <= PLACES)
    above = min(users for users in levels if users > PLACES)
    assert answer.headline.interval_x is not None
    low, high = answer.headline.interval_x
    assert high is not None
    assert below - 1 <= low <= answer.headline.estimate_x <= high <= above
    assert answer.headline.estimate_x >= below
    (bound,) = answer.bounds
    assert bound.name == "errors"


def test_a_gateway_that_refuses_most_requests_at_one_user_already_holds_no_user(tmp_path: Path) -> None:
    """A limit of requests a minute: whatever the users, as many requests are served."""
    write_levels(tmp_path / "r", 1, 2, 4, places=0, status=429)
    served = [answered(100.0 + 100.0 * level, 7.0 * n, 50, 1) for level in range(3) for n in range(8)]
    rows = [
        row
        for level, users in enumerate((1, 2, 4))
        for row in level_rows(100.0 + 100.0 * level, users, places=0, status=429)
    ]
    make_folder(
        tmp_path / "s" / "r",
        rows + served,
        schedule=[(101.0 + 100 * n, 159.0 + 100 * n, u) for n, u in enumerate((1, 2, 4))],
        ended_unix_s=400.0,
    )
    answer = answer_for(tmp_path / "s", slo=SLO)
    assert (answer.headline.binding, answer.headline.max_users) == ("errors", 0)


def test_the_interval_of_the_error_wall_reaches_down_to_the_last_level_that_was_served(
    tmp_path: Path,
) -> None:
    """From one user to the next, all that is too much is refused: 6 users are served, and 7 are not."""
    write_levels(tmp_path / "r", 2, 4, 6, 9, 12, places=PLACES, status=503)
    headline = answer_for(tmp_path, slo=SLO).headline
    assert headline.interval_x is not None
    assert headline.interval_x[0] <= PLACES
    assert headline.max_users in (PLACES - 1, PLACES)
