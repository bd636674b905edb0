"""Each reason to distrust a level, provoked alone."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.evidence.evidence import gather_evidence
from analysis.notes import (
    AnotherPool,
    ClientErrors,
    EngineRestarted,
    EnginesChanged,
    FewerEngines,
    ForeignLoad,
    GeneratorBusy,
    GeneratorLate,
    LittlesLawOff,
    LoadNotReached,
    Note,
    NotSteady,
    ServerAway,
    SeveralReplicas,
    TokensDisagree,
    TooFewRequests,
    TooMuchLoad,
)
from analysis.reading.runs import find_runs, read_run
from analysis.reporting.capacity_words import not_met_text
from loadtest.record import Outcome, Slo
from testing.runs.answers import answer_for
from testing.runs.virtual import Plan, chat_lengths, small_engine, write_run

PLAN = Plan(levels=(8,), level_s=20.0)
JsonLine = dict[str, object]


def written(folder: Path, plan: Plan = PLAN) -> Path:
    """A run of one level in a pool that is large enough for it."""
    write_run(folder, small_engine(num_gpu_blocks=2048, max_model_len=8192), plan)
    return folder


def rewrite(file: Path, change: Callable[[int, JsonLine], JsonLine | None]) -> None:
    """Changes each line by its number; None leaves it out."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    changed = [change(number, line) for number, line in enumerate(lines)]
    assert changed != lines
    file.write_text("".join(json.dumps(line) + "\n" for line in changed if line is not None))


def set_run(folder: Path, **changes: object) -> None:
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | changes))


def doubts(folder: Path) -> list[Note]:
    (found,) = find_runs(folder)
    (level,) = gather_evidence([read_run(found)], slo=Slo()).levels
    assert level.trusted is (not level.why_not)
    return list(level.why_not)


def only_doubt(folder: Path) -> Note:
    (doubt,) = doubts(folder)
    return doubt


def test_a_sound_level_is_trusted(tmp_path: Path) -> None:
    assert doubts(written(tmp_path / "r")) == []


def test_a_late_load_generator(tmp_path: Path) -> None:
    late = Plan(levels=(8,), level_s=20.0, lag_s=0.05)
    doubt = only_doubt(written(tmp_path / "r", late))
    assert doubt == GeneratorLate(lag_s=pytest.approx(0.05), limit_s=pytest.approx(0.005))


def test_a_busy_load_generator(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    rewrite(folder / "client-0.jsonl", lambda _, line: line | {"cpu": 0.93})
    assert only_doubt(folder) == GeneratorBusy(cpu=pytest.approx(0.93), limit=0.85)


def test_what_follows_from_a_late_load_generator_is_not_named_beside_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", Plan(levels=(8,), level_s=20.0, lag_s=0.05))
    ((begin, end, _),) = json.loads((folder / "run.json").read_text())["schedule"]
    set_run(folder, schedule=[[begin, end, 10]])
    assert isinstance(only_doubt(folder), GeneratorLate)


def test_too_few_requests(tmp_path: Path) -> None:
    long = Plan(levels=(8,), level_s=11.0, lengths=lambda rng: (60, 900 + int(rng.integers(200))))
    doubt = only_doubt(written(tmp_path / "r", long))
    assert isinstance(doubt, TooFewRequests)
    assert 0 < doubt.ended < doubt.needed == 20


def test_users_who_were_never_all_there(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    ((begin, end, _),) = json.loads((folder / "run.json").read_text())["schedule"]
    set_run(folder, schedule=[[begin, end, 10]])
    assert only_doubt(folder) == LoadNotReached(in_flight=pytest.approx(8.0, abs=0.05), users=10)


def test_more_requests_than_users(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    ((begin, end, _),) = json.loads((folder / "run.json").read_text())["schedule"]
    set_run(folder, schedule=[[begin, end, 6]])
    assert only_doubt(folder) == TooMuchLoad(in_flight=pytest.approx(8.0, abs=0.05), users=6)


def test_rows_that_are_missing_break_littles_law(tmp_path: Path) -> None:
    """In a run that goes on the load generator counts what is in flight, and every fourth row is lost."""
    folder = written(tmp_path / "r")
    set_run(folder, ended_unix_s=None)
    assert doubts(folder) == []
    rewrite(folder / "requests-0.jsonl", lambda number, line: line if number % 4 else None)
    assert only_doubt(folder) == LittlesLawOff(off=pytest.approx(-0.25, abs=0.05))


def test_tokens_that_the_server_counted_and_we_did_not(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    key = "generation_tokens_total"
    rewrite(folder / "server.jsonl", lambda _, line: line | {key: 1.05 * float(str(line[key]))})
    assert only_doubt(folder) == TokensDisagree(off=pytest.approx(0.05))


def test_tokens_that_we_counted_and_the_server_did_not(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    key = "generation_tokens_total"
    rewrite(folder / "server.jsonl", lambda _, line: line | {key: 0.97 * float(str(line[key]))})
    assert only_doubt(folder) == TokensDisagree(off=pytest.approx(-0.03))


def test_foreign_load(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    rewrite(folder / "server.jsonl", lambda _, line: line | {"waiting": 5.0, "waiting_capacity": 0.0})
    assert only_doubt(folder) == ForeignLoad(requests=pytest.approx(5.0, abs=0.3))


def failing(folder: Path, every: int, **failed: object) -> Path:
    """One of `every` rows becomes a failure; the server does not tell how many tokens it made."""
    values = {"http_status": None, "finish_reason": None, "output_tokens": None, "chunk_s": [], **failed}
    rewrite(folder / "requests-0.jsonl", lambda number, line: line if number % every else line | values)
    rewrite(folder / "server.jsonl", lambda _, line: line | {"generation_tokens_total": None})
    return folder


def test_requests_that_never_left_the_load_generator(tmp_path: Path) -> None:
    doubt = only_doubt(failing(written(tmp_path / "r"), 20, outcome="not_sent", error="no file descriptor"))
    assert isinstance(doubt, ClientErrors)
    assert doubt.failed / doubt.ended == pytest.approx(1 / 20, abs=0.02)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(outcome, None) for outcome in Outcome if outcome not in (Outcome.OK, Outcome.NOT_SENT)]
    + [(Outcome.HTTP_ERROR, 400), (Outcome.HTTP_ERROR, 429), (Outcome.HTTP_ERROR, 503)],
)
def test_failures_of_the_server_are_no_doubt(tmp_path: Path, outcome: Outcome, status: int | None) -> None:
    """Also where they are one request in ten: they are evidence, and their own times count everywhere."""
    assert doubts(failing(written(tmp_path / "r"), 10, outcome=str(outcome), http_status=status)) == []


def test_one_request_in_a_thousand_that_was_not_sent_is_no_doubt(tmp_path: Path) -> None:
    assert doubts(failing(written(tmp_path / "r"), 1000, outcome="not_sent")) == []


def test_a_level_that_still_drifts_at_its_end(tmp_path: Path) -> None:
    drawn = itertools.count()

    def growing(rng):
        prompt, output = chat_lengths(rng)
        return prompt + 2 * next(drawn), output

    folder = written(tmp_path / "r", Plan(levels=(4,), level_s=60.0, lengths=growing))
    assert only_doubt(folder) == NotSteady()


def test_a_level_in_which_requests_took_longer_for_a_while(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", Plan(levels=(8,), level_s=120.0))
    begin, end, _ = schedule_of(folder)[0]

    def slowed(_: int, line: JsonLine) -> JsonLine:
        position = (float(str(line["start_unix_s"])) - begin) / (end - begin)
        return line | {"end_s": 1.6 * float(str(line["end_s"]))} if 0.35 < position < 0.7 else line

    rewrite(folder / "requests-0.jsonl", slowed)
    assert NotSteady() in doubts(folder)


def test_a_level_that_drifted_in_its_first_half_is_cut_to_its_last(tmp_path: Path) -> None:
    """Answers become three times as long before the middle of the level, and stay so."""
    drawn = itertools.count()

    def settling(rng):
        return 100, (40 if next(drawn) < 650 else 120) + int(rng.integers(20))

    folder = written(tmp_path / "r", Plan(levels=(4,), level_s=60.0, settle_s=0.0, lengths=settling))
    (found,) = find_runs(folder)
    run = read_run(found)
    (level,) = gather_evidence([run], slo=Slo()).levels
    ((begin, end, _),) = run.info.schedule
    assert level.trusted
    assert level.window.end_unix_s == end
    assert (level.window.begin_unix_s - begin) / (end - begin) == pytest.approx(0.5)
    late = run.requests.end_unix_s >= level.window.begin_unix_s
    inside = late & (run.requests.end_unix_s < end)
    assert level.requests.n == inside.sum()
    assert run.requests.output_tokens[inside].min() > 100  # none of those that drifted


THREE = Plan(levels=(4, 8, 8), level_s=20.0)
COUNTERS = ("generation_tokens_total", "preemptions_total")


def doubts_of_levels(folder: Path) -> list[list[Note]]:
    (found,) = find_runs(folder)
    return [list(level.why_not) for level in gather_evidence([read_run(found)], slo=Slo()).levels]


def restart(folder: Path, at_unix_s: float, *, engine: str = "0") -> None:
    """The counters of an engine begin at 0 again at this time."""
    lost: dict[str, float] = {}

    def lower(_: int, line: JsonLine) -> JsonLine:
        values = {name: float(str(line[name])) for name in COUNTERS}
        if line["engine"] != engine:
            return line
        if float(str(line["unix_s"])) < at_unix_s:
            lost.update(values)
            return line
        return line | {name: value - lost[name] for name, value in values.items()}

    rewrite(folder / "server.jsonl", lower)


def schedule_of(folder: Path) -> list[tuple[float, float, int]]:
    return [tuple(level) for level in json.loads((folder / "run.json").read_text())["schedule"]]


def test_an_engine_that_restarts_spoils_the_level_in_which_it_did_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", THREE)
    begin, end, _ = schedule_of(folder)[1]
    restart(folder, (begin + end) / 2)
    first, (doubt,), last = doubts_of_levels(folder)
    assert isinstance(doubt, EngineRestarted)
    assert doubt.unix_s == pytest.approx((begin + end) / 2, abs=1.1)
    assert first == last == []


def test_a_restart_between_two_levels_is_no_doubt(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", THREE)
    _, end, _ = schedule_of(folder)[0]
    restart(folder, end + 1.0)
    assert doubts_of_levels(folder) == [[], [], []]


def test_a_restart_is_told_by_the_start_of_the_process_where_counters_only_rise(tmp_path: Path) -> None:
    """The server had served little before, so that its counter is past its old value at the next scrape."""
    folder = written(tmp_path / "r", THREE)
    begin, *_ = schedule_of(folder)[0]
    at = begin + 10.0

    def started(_: int, line: JsonLine) -> JsonLine:
        return line | {"started_unix_s": 1000.0 if float(str(line["unix_s"])) < at else at}

    rewrite(folder / "server.jsonl", started)
    (doubt,), *_ = doubts_of_levels(folder)
    assert isinstance(doubt, EngineRestarted)


def test_a_server_that_was_away_is_the_reason_and_the_restart_behind_it_is_not(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", THREE)
    begin, end, _ = schedule_of(folder)[1]
    middle = (begin + end) / 2
    restart(folder, middle)
    gap = (middle - 2.0, middle + 2.0)
    set_run(folder, away=[gap])
    rewrite(
        folder / "requests-0.jsonl",
        lambda _, line: None if gap[0] < float(str(line["start_unix_s"])) < gap[1] else line,
    )
    rewrite(
        folder / "server.jsonl",
        lambda _, line: line | {"generation_tokens_total": None},
    )
    first, doubt, last = doubts_of_levels(folder)
    assert doubt == [ServerAway(from_unix_s=gap[0], to_unix_s=gap[1])]
    assert first == last == []


def second_engine(folder: Path, since_unix_s: float) -> None:
    """Half of the load moves to a second engine from a time on."""
    lines = [json.loads(line) for line in (folder / "server.jsonl").read_text().splitlines()]
    at_start: dict[str, float] = {}
    rows = []
    for line in lines:
        if line["unix_s"] < since_unix_s:
            at_start = line
            rows.append(line)
            continue
        halves = {name: (line[name] - at_start[name]) / 2 for name in COUNTERS}
        gauges = {name: line[name] / 2 for name in ("running", "waiting", "waiting_capacity")}
        first = {name: at_start[name] + halves[name] for name in COUNTERS}
        rows += [line | gauges | first, line | gauges | halves | {"engine": "1"}]
    (folder / "server.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))


def test_levels_of_a_pool_that_is_no_longer_there_are_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", THREE)
    _, end, _ = schedule_of(folder)[0]

    def blocks(_: int, line: JsonLine) -> JsonLine:
        return line | {"num_gpu_blocks": 1025 if float(str(line["unix_s"])) < end else 2049}

    rewrite(folder / "server.jsonl", blocks)
    (found,) = find_runs(folder)
    pool = gather_evidence([read_run(found)], slo=Slo()).pool
    assert pool is not None
    assert pool.blocks == 2048
    changed = AnotherPool(tokens=pool.tokens // 2, tokens_later=pool.tokens)
    assert doubts_of_levels(folder) == [[changed], [], []]


def test_a_replica_that_appears_is_named_and_levels_without_it_too(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", THREE)
    begin, end, _ = schedule_of(folder)[1]
    second_engine(folder, (begin + end) / 2)
    assert doubts_of_levels(folder) == [
        [FewerEngines(engines=1, most=2)],
        [EnginesChanged(least=1, most=2)],
        [],
    ]


def test_one_engine_of_two_that_restarts_is_seen(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", THREE)
    second_engine(folder, schedule_of(folder)[0][0] - 1.9)
    begin, end, _ = schedule_of(folder)[1]
    restart(folder, (begin + end) / 2, engine="1")
    _, (doubt,), last = doubts_of_levels(folder)
    assert isinstance(doubt, EngineRestarted)
    assert last == []


def test_a_gpu_exporter_that_fails_is_no_failed_scrape(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    lines = [json.loads(line) for line in (folder / "server.jsonl").read_text().splitlines()]
    errors = [{"unix_s": line["unix_s"], "error": "DCGM exporter: no answer"} for line in lines[::2]]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *errors])
    (folder / "server.jsonl").write_text(text)
    (found,) = find_runs(folder)
    run = read_run(found)
    assert run.server.failed_scrapes == 0
    assert not any("scrapes" in warning for warning in run.warnings)
    assert any("GPU exporter" in warning for warning in run.warnings)


def shrink(folder: Path, names: tuple[str, ...], share: float) -> None:
    """The metrics show only a share of these values."""
    rewrite(
        folder / "server.jsonl",
        lambda _, line: line | {name: share * float(str(line[name])) for name in names},
    )


def replicas_of(folder: Path) -> list[Note]:
    (found,) = find_runs(folder)
    return list(gather_evidence([read_run(found)], slo=Slo()).replicas)


LOAD = ("running", "waiting", "waiting_capacity")


def test_metrics_of_one_replica_of_two_are_named_and_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    shrink(folder, (*LOAD, *COUNTERS), 0.48)
    assert replicas_of(folder) == [SeveralReplicas(seen_share=pytest.approx(0.48, abs=0.01))]
    assert doubts(folder) == []
    (found,) = find_runs(folder)
    assert gather_evidence([read_run(found)], slo=Slo()).pool is None


def test_a_counter_that_is_too_low_while_the_load_is_seen_is_no_replica(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    shrink(folder, COUNTERS, 0.48)
    assert replicas_of(folder) == []
    assert only_doubt(folder) == TokensDisagree(off=pytest.approx(-0.52, abs=0.01))


def test_rows_that_are_lost_are_no_replica(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    rewrite(folder / "requests-0.jsonl", lambda number, line: line if number % 2 else None)
    assert replicas_of(folder) == []
    assert any(isinstance(doubt, TokensDisagree) and doubt.off > 0.5 for doubt in doubts(folder))


def test_foreign_load_is_no_replica(tmp_path: Path) -> None:
    folder = written(tmp_path / "r")
    shrink(folder, (*LOAD, *COUNTERS), 2.0)
    assert replicas_of(folder) == []
    assert any(isinstance(doubt, ForeignLoad) for doubt in doubts(folder))


@pytest.mark.parametrize("starts", [True, False], ids=["starts told", "counters alone"])
def test_scrapes_that_come_from_two_replicas_by_turns_are_no_restarts(tmp_path: Path, starts: bool) -> None:
    folder = written(tmp_path / "r")

    def turns(number: int, line: JsonLine) -> JsonLine:
        first = number % 2 == 0
        share = 0.4 if first else 0.6
        values = {name: share * float(str(line[name])) + 1000.0 * first for name in COUNTERS}
        return line | values | ({"started_unix_s": 50.0 if first else 900.0} if starts else {})

    rewrite(folder / "server.jsonl", turns)
    assert replicas_of(folder) == [SeveralReplicas(seen_share=None)]
    assert doubts(folder) == []


def metrics_warnings(folder: Path) -> list[str]:
    (found,) = find_runs(folder)
    return [warning for warning in read_run(found).warnings if "etrics" in warning]


def test_metrics_that_were_not_asked_for_are_not_said_to_be_missing(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", Plan(levels=(8,), level_s=20.0, metrics=False))
    set_run(folder, settings={"settle_s": 5.0, "metrics_url": "off"})
    (warning,) = metrics_warnings(folder)
    assert "not asked for (--metrics-url off)" in warning


def test_what_was_found_instead_of_metrics_is_said_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", Plan(levels=(8,), level_s=20.0, metrics=False))
    said = "No vLLM metrics (http://h/metrics has only llamacpp metrics): the memory wall cannot be measured."
    set_run(folder, warnings=[said])
    assert metrics_warnings(folder) == [said]


def test_walls_that_nothing_could_show_are_not_observable(tmp_path: Path) -> None:
    blind = written(tmp_path / "blind" / "r", Plan(levels=(2, 4), level_s=20.0, metrics=False))
    seen = written(tmp_path / "seen" / "r", Plan(levels=(2, 4), level_s=20.0))
    without, with_metrics = answer_for(blind.parent), answer_for(seen.parent)
    assert without.not_observable == ["kv_cache", "max_num_seqs"]
    assert {"kv_cache", "max_num_seqs"}.isdisjoint(wall.name for wall in without.not_met)
    assert "Not observable here: KV cache, max_num_seqs." in not_met_text(without)
    assert with_metrics.not_observable == []
    assert "max_num_seqs" in {wall.name for wall in with_metrics.not_met}
