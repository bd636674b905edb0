"""Conversations and pauses that failures or the end of a run cut off."""

from pathlib import Path

import numpy as np
import pytest

from analysis.evidence.evidence import gather_evidence
from analysis.evidence.lifetimes import censoring_weights, conversation_turns, measured_pauses
from analysis.reading.runs import Run, find_runs, read_run
from loadtest.record import Outcome, RequestRecord, Slo
from testing.runs.folders import make_folder, row

THINK_S, ANSWER_S, USERS = 2.0, 0.5, 4


def rows_of(user: int, *, fails_every: int, until_s: float) -> list[RequestRecord]:
    """Requests of one user who thinks for THINK_S; one in `fails_every` fails, and a pause comes first."""
    rows, at, number = [], 100.0 + 0.3 * user, 0
    while at + ANSWER_S < 100.0 + until_s:
        number += 1
        failed = fails_every > 0 and number % fails_every == 0
        pause_s = 5.0 if failed else None
        rows.append(
            row(
                request_id=f"{user}-{number}", user=user, level_users=USERS, start_unix_s=at, sent_s=0.0,
                chunk_s=[] if failed else [0.1, 0.3, 0.49], end_s=ANSWER_S, turn=(number - 1) % 3,
                pause_s=pause_s,
                outcome=Outcome.HTTP_ERROR if failed else Outcome.OK, http_status=503 if failed else 200,
                output_tokens=None if failed else 3,
            )
        )  # fmt: skip
        at += ANSWER_S + (pause_s or 0.0) + THINK_S
    return rows


def run_of(folder: Path, *, fails_every: int) -> Run:
    rows = [one for user in range(USERS) for one in rows_of(user, fails_every=fails_every, until_s=300.0)]
    make_folder(folder / "r", rows, schedule=[(101.0, 399.0, USERS)], ended_unix_s=400.0)
    (found,) = find_runs(folder)
    return read_run(found)


@pytest.mark.parametrize("fails_every", [0, 4])
def test_the_pause_after_a_failed_request_is_no_think_time(tmp_path: Path, fails_every: int) -> None:
    run = run_of(tmp_path, fails_every=fails_every)
    pauses_s, ended = measured_pauses(run)
    assert (ended > 0).sum() > 100
    assert pauses_s[ended > 0] == pytest.approx(THINK_S)
    (level,) = gather_evidence([run], slo=Slo()).levels
    assert level.paused == pytest.approx(0.0 if not fails_every else USERS * 5.0 / 15.0, abs=0.1)


def test_a_conversation_that_a_failed_turn_ended_did_not_end_by_itself(tmp_path: Path) -> None:
    _, length, whole = conversation_turns(run_of(tmp_path, fails_every=8).requests)
    assert set(length[whole].tolist()) == {3}
    assert 2 in length[~whole]
    assert (~whole).sum() > USERS


def test_the_largest_durations_that_were_cut_off_share_what_is_left() -> None:
    values, complete = np.array([1.0, 3.0, 3.0, 3.0]), np.array([True, True, False, False])
    weight = censoring_weights(values, complete)
    assert weight == pytest.approx([0.25, 0.25, 0.25, 0.25])
