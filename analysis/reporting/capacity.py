"""Makes the report of `python -m analysis.capacity`: for the terminal, as Markdown, HTML and JSON."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.answers.capacity import Answer, ModelAnswer
from analysis.levels.level import Level
from analysis.reporting.capacity_json import answer_object
from analysis.reporting.capacity_tables import (
    CLASS_COLUMNS,
    LEVEL_COLUMNS,
    SLICE_COLUMNS,
    class_cells,
    in_time_cells,
    in_time_columns,
    latency_rows,
    level_cells,
    memory_rows,
    percentile_cells,
    replay_rows,
    slice_cells,
    wall_cells,
    workload_rows,
)
from analysis.reporting.capacity_words import (
    AT_LEAST_NOTE,
    classes_title,
    first_screen,
    not_met_text,
    objectives,
    option_texts,
    options_title,
    plan_title,
)
from analysis.reporting.console import (
    PLAIN_WIDTH,
    Output,
    markdown_table,
    print_indented,
    show_list,
    terminal_table,
)
from analysis.reporting.failure_words import FAILURE_COLUMNS, failure_cells
from analysis.reporting.files import day, json_text, page, slug, write_files
from analysis.reporting.words import sentences

JSON_FILE, HTML_FILE, MARKDOWN_FILE = "capacity.json", "report.html", "report.md"
REPLAY_COLUMNS = ("replay of sessions", "")
NARROW_LEAVES_OUT = ("TTFT p50 ms", "stall p95 ms", "goodput req/s", "blocked", "errors")


def write(answer: Answer, *, folder: Path) -> None:
    """Writes capacity.json, report.html, report.md and figures. Raises InputError if it cannot write."""
    from analysis.reporting.figures import capacity as plots

    drawn = [plots.capacity_figures(model, answer.slo) for model in answer.models]
    files = {
        JSON_FILE: json_text(answer_object(answer)),
        HTML_FILE: html(answer, drawn),
        MARKDOWN_FILE: markdown(answer, drawn),
    }
    for model, figures in zip(answer.models, drawn, strict=True):
        files |= {figure_file(answer, model, name): text for name, text in figures.items()}
    write_files(folder, files, make_folder=False, otherwise="copy the runs elsewhere")


def html(answer: Answer, drawn: Sequence[dict[str, str]]) -> str:
    """Returns the report as one HTML page that needs no other file.

    drawn: for each model, its figures as a map from name to SVG text.
    """
    return page(
        "report.html.j2",
        answer=answer,
        models=[
            render_page(model, figures, answer) for model, figures in zip(answer.models, drawn, strict=True)
        ],
        generated=day(answer.generated_unix_s),
        objectives=objectives(answer.slo),
        class_columns=CLASS_COLUMNS,
        level_columns=LEVEL_COLUMNS,
        slice_columns=SLICE_COLUMNS,
        failure_columns=FAILURE_COLUMNS,
    )


def markdown(answer: Answer, drawn: Sequence[dict[str, str]]) -> str:
    """Returns the report as Markdown, with links to the figure files. drawn: the figures, as in `html`."""
    parts = ["# Seatcount: how many users?", ""]
    for model, figures in zip(answer.models, drawn, strict=True):
        parts += _markdown_model(answer, model, figures)
    parts += ["## Objectives", "", *[f"- {text}" for text in objectives(answer.slo)], ""]
    parts += [f"Made {day(answer.generated_unix_s)}. Definitions: docs/method.md."]
    return "\n".join(parts) + "\n"


def _markdown_model(answer: Answer, model: ModelAnswer, figures: dict[str, str]) -> list[str]:
    parts = [f"## {model.model}: {plan_title(model)}", ""]
    for text in first_screen(model, slo=answer.slo, confidence=answer.confidence):
        parts += [text, ""]
    if options := option_texts(model):
        parts += [f"{options_title(model)}:", "", *[f"- {text}" for text in options], ""]
    parts += [f"![{name}]({figure_file(answer, model, name)})\n" for name in figures]
    if model.bounds:
        parts += ["### Walls", ""]
        parts += markdown_table(
            ("wall", "users", "interval", "basis"), [wall_cells(bound) for bound in model.bounds]
        )
    if not_met_text(model):
        parts += [not_met_text(model), ""]
    if model.classes:
        parts += [f"### {classes_title(model)}", ""]
        rows = [class_cells(name, found) for name, found in model.classes.items()]
        parts += markdown_table([name for name, _ in CLASS_COLUMNS], rows)
    if model.levels:
        parts += ["### Levels", ""]
        parts += markdown_table(
            [name for name, _ in LEVEL_COLUMNS], [level_cells(level) for level in model.levels]
        )
        parts += [AT_LEAST_NOTE, ""]
        shares = [in_time_cells(level, answer.slo) for level in model.levels]
        parts += markdown_table(in_time_columns(answer.slo), shares)
    if rows_of_replay := replay_rows(model.replay):
        parts += ["### Replay of sessions", "", *markdown_table(REPLAY_COLUMNS, rows_of_replay)]
    if model.failures:
        parts += ["### Errors", ""]
        parts += markdown_table(FAILURE_COLUMNS, [failure_cells(one) for one in model.failures])
    if model.open_loop:
        parts += ["### Open loop", ""]
        parts += markdown_table(
            [name for name, _ in SLICE_COLUMNS], [slice_cells(one) for one in model.open_loop]
        )
    parts += [f"- {label}: {value}" for label, value in memory_rows(model) + latency_rows(model)]
    if model.warnings:
        parts += ["", "### Warnings", "", *[f"- {text}" for text in sentences(model.warnings)]]
    return [*parts, ""]


def show(answer: Answer, *, folder: Path, console: Console | None = None) -> None:
    """Prints each model's answer and its evidence, and at the end the path of report.html.

    folder: the folder that holds report.html.
    """
    out = console or Output()
    for model in answer.models:
        _show_model(out, answer, model)
    out.print(f"Report: {folder / HTML_FILE}", soft_wrap=True, markup=False)


def _show_model(out: Console, answer: Answer, model: ModelAnswer) -> None:
    colour = "red" if model.refused else "green"
    out.print()
    out.print(Text.assemble((f"{model.model}: ", "bold"), (plan_title(model), f"bold {colour}")))
    for text in first_screen(model, slo=answer.slo, confidence=answer.confidence):
        print_indented(out, text)
    if options := option_texts(model):
        show_list(out, options_title(model), options)
    out.print()
    if model.bounds:
        out.print(
            terminal_table(
                ("wall", "users", "interval", "basis"), [wall_cells(bound) for bound in model.bounds]
            )
        )
    if not_met_text(model):
        print_indented(out, not_met_text(model) + "\n", style="dim")
    if model.classes:
        print_indented(out, classes_title(model))
        rows = [class_cells(name, found) for name, found in model.classes.items()]
        out.print(terminal_table([name for name, _ in CLASS_COLUMNS], rows))
    if model.levels:
        out.print(_level_table(model, narrow=out.width < PLAIN_WIDTH))
        if any(None in _p95s(level) for level in model.levels):
            print_indented(out, AT_LEAST_NOTE, style="dim")
        shares = [in_time_cells(level, answer.slo) for level in model.levels]
        out.print(terminal_table(in_time_columns(answer.slo), shares))
    if rows_of_replay := replay_rows(model.replay):
        out.print(terminal_table(REPLAY_COLUMNS, rows_of_replay))
    if model.failures:
        out.print(terminal_table(FAILURE_COLUMNS, [failure_cells(one) for one in model.failures]))
    if model.open_loop:
        out.print(
            terminal_table([name for name, _ in SLICE_COLUMNS], [slice_cells(one) for one in model.open_loop])
        )
    facts = memory_rows(model) + latency_rows(model)
    show_list(out, "Memory and speed", [f"{label}: {value}" for label, value in facts])
    show_list(out, "Warnings", sentences(model.warnings))
    out.print()


def _p95s(level: Level) -> tuple[float | None, ...]:
    requests = level.requests
    return requests.ttft_s.p95, requests.tpot_s.p95, requests.stall_s.p95


def _level_table(model: ModelAnswer, *, narrow: bool) -> Table:
    names = [name for name, _ in LEVEL_COLUMNS]
    kept = [column for column, name in enumerate(names) if not (narrow and name in NARROW_LEAVES_OUT)]
    rows = [level_cells(level) for level in model.levels]
    return terminal_table(
        [names[column] for column in kept], [[row[column] for column in kept] for row in rows]
    )


def figure_file(answer: Answer, model: ModelAnswer, name: str) -> str:
    if len(answer.models) == 1:
        return f"{name}.svg"
    return f"{slug(model.model)}-{name}.svg"


def render_page(model: ModelAnswer, figures: dict[str, str], answer: Answer) -> dict[str, object]:
    """Returns the variables that the HTML template needs for one model, by name."""
    return {
        "answer": model,
        "headline": plan_title(model),
        "paragraphs": first_screen(model, slo=answer.slo, confidence=answer.confidence),
        "options_title": options_title(model) if model.options else "",
        "options": option_texts(model),
        "warnings": sentences(model.warnings),
        "levels": [(level, level_cells(level)) for level in model.levels],
        "walls": [(bound, wall_cells(bound)) for bound in model.bounds],
        "not_met": not_met_text(model),
        "classes_title": classes_title(model),
        "classes": [class_cells(name, found) for name, found in model.classes.items()],
        "memory": memory_rows(model),
        "latency": latency_rows(model),
        "workload": workload_rows(model.workload),
        "replay": replay_rows(model.replay),
        "failures": [failure_cells(one) for one in model.failures],
        "slices": [slice_cells(one) for one in model.open_loop],
        "in_time_columns": in_time_columns(answer.slo)[1:],
        "percentiles": [
            percentile_cells(level) + in_time_cells(level, answer.slo)[1:] for level in model.levels
        ],
        "figures": {name: Markup(text) for name, text in figures.items()},
        "slug": slug(model.model),
    }
