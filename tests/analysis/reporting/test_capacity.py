"""What a person reads: the answer first, whole words, nothing from outside the file."""

import io
import json
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from analysis.answers.capacity import Answer, Bound, Headline, ModelAnswer
from analysis.capacity.answer import recommend
from analysis.notes import NoRequests
from analysis.reading.runs import find_runs, read_run
from analysis.reporting import capacity as report
from analysis.reporting.capacity_json import model_object
from analysis.reporting.capacity_words import first_screen, plan_title
from analysis.reporting.console import PLAIN_WIDTH
from analysis.reporting.figures import capacity as plots
from analysis.reporting.numbers import fine_milliseconds, milliseconds, percent
from loadtest.errors import InputError
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelAnswer:
    folder = tmp_path_factory.mktemp("reports") / "run"
    write_run(folder, small_engine(), Plan(levels=(2, 8, 16, 20), level_s=20.0))
    return recommend([read_run(found) for found in find_runs(folder)], slo=Slo())


def answer_of(*models: ModelAnswer) -> Answer:
    return Answer(generated_unix_s=1.8e9, confidence=0.9, slo=Slo(), models=list(models))


def shown(answer: Answer, *, width: int = PLAIN_WIDTH, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    report.show(answer, folder=Path("reports"), console=console)
    return out.getvalue()


def test_the_first_lines_say_how_many_how_sure_and_what_limits(model):
    lines = shown(answer_of(model)).strip().splitlines()
    assert re.fullmatch(r"tiny: plan for 1[5-7] users", lines[0].strip())
    limit = re.match(r" *The limit is (1[67]\.\d) users \(90 %: (1\d\.\d) to (1\d\.\d)\): KV cache", lines[1])
    assert limit is not None
    low, high = float(limit[2]), float(limit[3])
    assert low <= float(limit[1]) <= high
    assert lines[0].endswith(f"plan for {int(low)} users")
    assert lines[1].endswith(f"{int(low)} is the lower end, rounded down.")
    assert "With more users, requests wait for GPU memory" in lines[2]
    assert re.search(r"By the objectives for TTFT, TPOT and errors alone, .* about \d+\.\d users", lines[3])
    assert re.search(
        r"Closed loop.*, prompts \d+ and answers \d+ tokens \(means of [\d,]+ requests\); TTFT p95", lines[4]
    )
    assert re.search(r"Trusted: 4 of 4 levels, with [\d,]+ requests in their windows\.", lines[5])
    assert f"What would raise the limit of {limit[1]} users" in "\n".join(lines[6:9])


def test_a_flat_curve_is_named_where_it_makes_the_answer_unsure(model):
    def said(interval_x: tuple[float, float], rise_x: tuple[float, float]) -> str:
        bound = Bound(
            name="ttft",
            users=12,
            interval=(9, 15),
            basis="measured",
            users_x=12.7,
            interval_x=interval_x,
            rise_x=rise_x,
        )
        headline = msgspec.structs.replace(model.headline, binding="ttft")
        late = msgspec.structs.replace(model, headline=headline, bounds=[bound])
        return " ".join(first_screen(late, slo=Slo(), confidence=0.9))

    flat = (
        "The curve is flat there: 2.5 % of the requests have a late first token at 10.8 users, 10 % at 15.2."
    )
    assert flat in said((9.6, 15.9), (10.8, 15.2))
    assert "flat" not in said((12.5, 12.9), (10.8, 15.2))  # the answer is sure
    assert "flat" not in said((9.6, 15.9), (12.6, 12.8))  # a cliff between two levels


def test_the_terminal_shows_each_level_and_no_column_is_cut(model):
    assert re.search(r"tokens/s +req/s .*blocked +errors +trusted", shown(answer_of(model)))
    text = shown(answer_of(model), width=80, terminal=True)
    assert re.search(r"tokens/s .*preempted +trusted", text)
    assert "…" not in text
    for level in model.levels:
        assert re.search(rf"^ +{level.users} +{level.requests.n:,} ", text, re.MULTILINE)


def test_a_refusal_says_why_and_shows_no_number(model):
    refused = msgspec.structs.replace(
        model, refused=True, headline=Headline(), options=[], bounds=[], reasons=[NoRequests()]
    )
    text = shown(answer_of(refused))
    assert "no answer" in text
    assert "The run holds no request" in text
    page = report.html(answer_of(refused), [{}])
    assert "The run holds no request" in page


def test_at_least_is_said_when_nothing_broke(model):
    head = Headline(max_users=16, interval=(16, None), interval_x=(16.2, None), at_least=True)
    open_ended = msgspec.structs.replace(model, headline=head, options=[])
    assert plan_title(open_ended) == "plan for at least 16 users"
    first = first_screen(open_ended, slo=Slo(), confidence=0.9)[0]
    assert "No wall was met up to 20 users" in first
    assert "run higher levels" in first


@pytest.mark.parametrize("form", ["terminal", "Markdown", "page"])
def test_a_simulated_server_is_named_before_any_table(model, tmp_path, form):
    """A number that no hardware has shown must not be taken for one that it has."""

    def first_part(one: ModelAnswer) -> str:
        if form == "terminal":
            return shown(answer_of(one)).partition("wall")[0]
        report.write(answer_of(one), folder=tmp_path)
        if form == "Markdown":
            return (tmp_path / "report.md").read_text().partition("|")[0]
        return (tmp_path / "report.html").read_text().partition("<table")[0]

    simulated = first_part(msgspec.structs.replace(model, simulated="qwen3-1.7b-t4"))
    assert f"plan for {model.headline.max_users} users" in simulated
    assert "SIMULATED" in simulated
    assert "qwen3-1.7b-t4" in simulated
    assert "not on hardware" in " ".join(simulated.split())
    assert "SIMULATED" not in first_part(model)


def test_the_page_is_self_contained_and_knows_dark_and_print(model):
    page = report.html(answer_of(model), [plots.capacity_figures(model, Slo())])
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "@import" not in page
    assert "url(http" not in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert page.count("<svg") == 5
    assert "None" not in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).replace("maintenance", "")


def test_names_from_outside_cannot_break_the_page(model):
    evil = msgspec.structs.replace(model, model="<script>alert(1)</script>", host="http://a&b")
    page = report.html(answer_of(evil), [{}])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_two_models_write_figures_under_their_own_names(model, tmp_path):
    other = msgspec.structs.replace(model, model="org/other model")
    report.write(answer_of(model, other), folder=tmp_path)
    assert (tmp_path / "tiny-memory.svg").exists()
    assert (tmp_path / "org-other-model-memory.svg").exists()
    text = (tmp_path / "report.md").read_text()
    assert "## tiny: " in text
    assert "(org-other-model-walls.svg)" in text


def test_a_folder_that_cannot_be_written_is_one_sentence(model, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        report.write(answer_of(model), folder=tmp_path / "missing")


def test_figures_are_the_same_each_time_and_wear_the_pages_colours(model):
    once, twice = plots.capacity_figures(model, Slo()), plots.capacity_figures(model, Slo())
    assert once == twice
    assert set(once) == {"memory", "walls", "ttft", "tpot", "throughput"}
    assert all("var(--blue, #0f62a8)" in once[name] for name in ("memory", "ttft", "tpot", "throughput"))


def test_gpu_memory_is_drawn_only_where_it_is_known(model):
    memory = msgspec.structs.replace(model.memory, vram_base_bytes=4 * 2**30)
    assert "vram" in plots.capacity_figures(msgspec.structs.replace(model, memory=memory), Slo())
    assert "vram" not in plots.capacity_figures(model, Slo())


def test_missing_values_are_a_dash_and_small_ones_keep_their_digits():
    assert milliseconds(None) == "–"
    assert milliseconds(0.00123) == "1.2"
    assert milliseconds(1.5) == "1,500"
    assert percent(None) == "–"
    assert percent(0.0064) == "0.64 %"
    assert percent(0.0) == "0 %"


def test_the_share_in_time_stands_at_every_level_and_a_p95_is_at_least_where_requests_are_few(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(2, 4), level_s=14.0))
    (run,) = (read_run(found) for found in find_runs(tmp_path / "r"))
    few = recommend([run], slo=Slo(ttft_p95_s=0.02))
    assert all(level.requests.tpot_s.p95 is None for level in few.levels)
    text, objects = shown(answer_of(few)), model_object(few)["levels"]
    assert text.count("≥ ") >= len(few.levels)
    for level, found in zip(few.levels, objects, strict=True):
        share, (low, high) = found["ttft_in_time"]["share"], found["ttft_in_time"]["interval"]
        assert share == pytest.approx(1.0 - level.requests.ttft_miss.fraction)
        assert low < share <= high
        assert high - low > 0.02
        assert found["tpot_s"].p95_at_least > 0.0
        assert re.search(rf"{level.users} +[\d.]+ % \([\d.]+ to [\d.]+\) +100 % \([\d.]+ to 100\)", text)


def test_what_is_below_a_microsecond_is_not_printed_with_all_its_digits():
    assert fine_milliseconds(6.64e-20) == "less than 0.001 ms"
    assert fine_milliseconds(0.0155) == "15.5 ms"


def test_what_own_prompts_share_stands_beside_the_measured_hit_rate(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, small_engine(), Plan(levels=(2, 8), level_s=20.0))
    info = json.loads((folder / "run.json").read_text())
    own = {"count": 200, "used": 150, "hit_fraction": 0.12, "kept_apart": True}
    (folder / "run.json").write_text(json.dumps(info | {"own_prompts": own}))
    model = recommend([read_run(found) for found in find_runs(folder)], slo=Slo())
    assert "what the own prompts share, each sent once: 12 %" in shown(answer_of(model))
    memory = msgspec.to_builtins(model_object(model))["memory"]
    assert memory["own_prompts_hit_rate"] == 0.12
