"""How faithful a replay was, from rows of known lengths and hits."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.answers.replay import LengthsOff
from analysis.capacity.replay import replay_of
from analysis.reading.runs import Run, find_runs, read_run
from loadtest.record import (
    Outcome,
    RecordedFacts,
    RequestRecord,
    RunInfo,
    ServerInfo,
    ServerSample,
    SessionsInfo,
    encode_line,
)


def row(number: int, *, late_s: float | None = None, ok: bool = True, **tokens: int | None) -> RequestRecord:
    """A request with these counts of the server: `prompt`, `output`, `cached`; and recorded: `was_prompt`,
    `was_output`, `reusable`."""
    return RequestRecord(
        request_id=str(number),
        model="m",
        scenario="chat",
        worker="0",
        user=0,
        turn=number,
        level_users=None,
        start_unix_s=float(number),
        end_s=1.0,
        max_tokens=9,
        outcome=Outcome.OK if ok else Outcome.TIMEOUT,
        prompt_tokens=tokens.get("prompt"),
        output_tokens=tokens.get("output"),
        cached_tokens=tokens.get("cached"),
        session="s",
        late_s=late_s,
        recorded=RecordedFacts(
            prompt_tokens=tokens.get("was_prompt"),
            output_tokens=tokens.get("was_output"),
            reusable_tokens=tokens.get("reusable") or 0,
        ),
    )


def run_of(folder: Path, *rows: RequestRecord, sessions: bool = True, counters: Any = ()) -> Run:
    info = RunInfo(
        run_id="r", model="m", scenario="chat", host="h", started_unix_s=0, ended_unix_s=9, settings={}
    )
    info.server = ServerInfo(block_size=16)
    if sessions:
        info.sessions = SessionsInfo(
            file="f.jsonl",
            format="seatcount",
            sessions=7,
            turns=30,
            has_text=False,
            history="server",
            times="recorded",
            too_long=2,
            begun_again=1,
        )
    (folder / "run.json").write_bytes(msgspec.json.encode(info))
    (folder / "requests-0.jsonl").write_bytes(b"".join(map(encode_line, rows)))
    samples = [
        ServerSample(unix_s=at, prefix_cache_queries_total=asked, prefix_cache_hits_total=hits)
        for at, (asked, hits) in enumerate(counters)
    ]
    (folder / "server.jsonl").write_bytes(b"".join(map(encode_line, samples)))
    (found,) = find_runs(folder)
    return read_run(found)


def test_lateness_lengths_and_hits_of_the_requests_that_succeeded(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        row(0, prompt=110, output=20, cached=0, was_prompt=100, was_output=20),
        row(1, prompt=200, output=30, cached=96, was_prompt=200, was_output=20, reusable=129, late_s=0.5),
        row(2, prompt=90, output=10, cached=80, was_prompt=100, was_output=40, reusable=500, late_s=2.0),
        row(3, prompt=50, output=5, cached=0),  # a text whose tokens the file does not state
        row(4, ok=False, was_prompt=100, was_output=20, late_s=9.0),
    )
    found = replay_of([run])
    assert found is not None
    assert (found.requests, found.late, found.late_p95_s) == (4, 2, 2.0)
    assert found.answers == LengthsOff(
        requests=3, longer=1, shorter=1, mean_ratio=pytest.approx(60 / 80), off_p95=0.75
    )
    assert found.prompts == LengthsOff(requests=3, longer=1, shorter=1, mean_ratio=1.0, off_p95=0.1)
    assert found.hit_rate == pytest.approx(176 / 450)
    assert found.hit_rate_unbounded == pytest.approx((128 + 80) / 450)  # whole blocks, never the last token
    assert (found.files, found.sessions, found.too_long, found.begun_again) == (["f.jsonl"], 7, 2, 1)


def test_without_usage_the_hits_are_those_of_the_servers_counters(tmp_path: Path) -> None:
    broken_off = msgspec.structs.replace(row(1, ok=False, was_prompt=60, reusable=32), chunk_s=[0.5])
    never_begun = row(2, ok=False, was_prompt=80, reusable=32)
    counters = [(1000, 500), (1100, 520), (1200, 560)]
    run = run_of(tmp_path, row(0, prompt=100), broken_off, never_begun, counters=counters)
    found = replay_of([run])
    assert found is not None
    assert found.hit_rate == pytest.approx(60 / 200)
    assert found.hit_rate_unbounded == pytest.approx(32 / 160)
    assert (found.answers, found.prompts, found.late_p95_s) == (None, None, None)


def test_a_run_without_sessions_has_no_replay(tmp_path: Path) -> None:
    assert replay_of([run_of(tmp_path, row(0, prompt=100), sessions=False)]) is None
