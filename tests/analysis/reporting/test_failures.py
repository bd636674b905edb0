"""Failed requests in a report: how many, the server's own words, at which levels, and what to do."""

import json
from pathlib import Path

import pytest

from analysis.capacity.__main__ import main
from loadtest.record import Outcome, RequestRecord
from testing.runs.folders import make_folder, row

TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested {} tokens"
EVERY, LEVEL_S = 0.5, 60.0


def level_rows(begin: float, users: int, **failed: object) -> list[RequestRecord]:
    """Every tenth request of each user fails at once with these values."""
    rows = []
    for user in range(users):
        for number in range(int(LEVEL_S / EVERY)):
            changes: dict[str, object] = {
                "request_id": f"{begin}-{user}-{number}", "user": user, "level_users": users,
                "start_unix_s": begin + (number + user / users) * EVERY, "chunk_s": [0.1, 0.12, 0.14],
                "end_s": 0.49,
            }  # fmt: skip
            if number % 10 == 3:
                changes |= {"chunk_s": [], "end_s": 0.01, "output_tokens": None, "pause_s": 0.48, **failed}
                changes["error"] = str(changes.get("error") or "").format(5000 + number) or None
            rows.append(row(**changes))
    return rows


def run_with(folder: Path, **failed: object) -> Path:
    rows, schedule = [], []
    for number, users in enumerate((1, 2, 4)):
        begin = 100.0 + 100.0 * number
        rows += level_rows(begin, users, **failed)
        schedule.append((begin + 1.0, begin + LEVEL_S - 1.0, users))
    return make_folder(folder, rows, schedule=schedule, ended_unix_s=500.0)


@pytest.mark.parametrize(
    ("failed", "said", "advice"),
    [
        (
            {"outcome": Outcome.HTTP_ERROR, "http_status": 400, "error": TOO_LONG},
            'were refused with 400 "This model\'s maximum context length is 4096 tokens. However, you',
            "shorten --prompt-tokens",
        ),
        (
            {"outcome": Outcome.HTTP_ERROR, "http_status": 400, "error": "blocked by the content filter"},
            'were refused with 400 "blocked by the content filter" at every level',
            "content filter lets through",
        ),
        (
            {"outcome": Outcome.HTTP_ERROR, "http_status": 422, "error": "ignore_eos: not permitted"},
            "were refused with 422",
            "--ignore-eos false",
        ),
        ({"outcome": Outcome.EMPTY}, "got an answer without any text at every level", "tool call"),
        (
            {"outcome": Outcome.HTTP_ERROR, "http_status": 502, "error": "[red]bad | gateway[/red]"},
            'were refused with 502 "[red]bad | gateway[/red]" at every level',
            "load is not the cause",
        ),
    ],
)  # fmt: skip
def test_failures_that_load_does_not_cause_are_named_and_the_answer_stands_on_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failed: dict[str, object], said: str, advice: str
) -> None:
    folder = run_with(tmp_path / "run", **failed)
    assert main([str(folder)]) == 0
    first = capsys.readouterr().out.partition("Closed loop")[0]
    assert f"of 812 requests {said}" in first
    assert advice in first
    assert "The answer stands on the other requests." in first
    (model,) = json.loads((folder / "capacity.json").read_text())["models"]
    (found,) = model["failures"]
    assert (found["outcome"], found["http_status"]) == (str(failed["outcome"]), failed.get("http_status"))
    assert found["cause"] == "not load"
    assert [one["users"] for one in found["by_users"]] == [1, 2, 4]
    assert sum(one["count"] for one in found["by_users"]) == found["count"] > 70
    assert all(level["trusted"] and level["ttft_miss_fraction"] == 0 for level in model["levels"])
    assert all(level["errors"] > 0 for level in model["levels"])
    assert model["binding"] == "not_reached"
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "Errors" in text
        assert str(failed["outcome"]) in text


def test_more_kinds_of_failures_than_fit_are_counted_in_the_first_lines(tmp_path: Path) -> None:
    rows = []
    for number, status in enumerate((400, 401, 404, 413, 422)):
        rows += level_rows(
            100.0 + 60.0 * number, 2, outcome=Outcome.HTTP_ERROR, http_status=status, error="no"
        )
    folder = make_folder(tmp_path / "run", rows, schedule=[(101.0, 399.0, 2)], ended_unix_s=500.0)
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "more requests failed in 2 other ways" in text.partition("##")[2]
    assert text.partition("### Errors")[2].count("| http_error |") == 5


def test_a_run_in_which_nothing_succeeded_says_with_which_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row(
            n, chunk_s=[], end_s=0.01, output_tokens=None, outcome=Outcome.HTTP_ERROR, http_status=401,
            error="bad key",
        )
        for n in range(60)
    ]  # fmt: skip
    make_folder(tmp_path / "run", rows, schedule=[(100.0, 160.0, 1)])
    assert main([str(tmp_path / "run")]) == 3
    said = capsys.readouterr().out
    assert "No request succeeded" in said
    assert '60 of 60 requests were refused with 401 "bad key"' in said
    assert "LOADTEST_API_KEY" in said
    assert "stands on" not in said
