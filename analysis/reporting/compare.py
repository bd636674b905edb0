"""Writes a comparison of two runs as text, Markdown, JSON and HTML. Knows no maths."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from analysis.answers.capacity import ModelAnswer
from analysis.answers.compare import (
    FIGURE_NAMES,
    MORE_IS_BETTER,
    Comparison,
    ComparisonRow,
    DifferenceVerdict,
    FigureName,
    GateAnswer,
    GateCheck,
    GateCriterion,
    SideFigure,
    row_name,
)
from analysis.reporting.capacity_json import model_object
from analysis.reporting.capacity_words import first_screen, objectives, plan_title
from analysis.reporting.console import Output, markdown_table, print_indented, show_list
from analysis.reporting.files import day, json_text, page, write_files
from analysis.reporting.numbers import NONE
from analysis.reporting.words import WALL_NAMES
from loadtest.units import GIB

COMPARE_FORMS = ("text", "markdown", "json")
COMPARE_JSON, COMPARE_HTML, COMPARE_MARKDOWN = "compare.json", "compare.html", "compare.md"

DIFFERENT: dict[DifferenceVerdict | None, str] = {
    "yes": "yes",
    "perhaps": "perhaps",
    "not_seen": "not detected",
    "equal": "equal",
    None: NONE,
}
READING = (
    "Real: yes, the difference is beyond what chance does to a table of this many rows (5 % for all of them "
    "together); perhaps, it would be beyond chance if the row were alone; not detected, neither. Intervals "
    "cover 90 % and allow for the dependence between requests of one level."
)
PREDICTED = "*: computed from the model's architecture and the GPU's data sheet, because no GPU was measured."
MEMORY = (
    "vLLM holds its GPU memory from the start, whatever the load. No load: weights, activations and CUDA "
    "graphs. In use at peak: these, and the KV cache of the fullest level."
)


def show_comparison(
    found: Comparison, *, form: str, folder: Path | None, console: Console | None = None
) -> None:
    """Prints the comparison.

    form: one of COMPARE_FORMS. folder: the folder of the written reports; None if none were written.
    """
    out = console or Output()
    if form == "json":
        out.print(json_text(_json_object(found)), soft_wrap=True, markup=False, end="")
    elif form == "markdown":
        out.print(comparison_markdown(found), soft_wrap=True, markup=False, end="")
    else:
        _show_text(out, found)
        if folder is not None:
            out.print(f"Report: {folder / COMPARE_HTML}", soft_wrap=True, markup=False)


def write_comparison(found: Comparison, *, folder: Path) -> None:
    """Writes compare.html, compare.md and compare.json. Raises InputError if it cannot write."""
    files = {
        COMPARE_JSON: json_text(_json_object(found)),
        COMPARE_MARKDOWN: comparison_markdown(found),
        COMPARE_HTML: comparison_html(found),
    }
    write_files(folder, files)


# Words for all forms.


def _json_object(found: Comparison) -> dict[str, object]:
    """Returns the content of compare.json. The answer of each run has the format of capacity.json."""
    return {**msgspec.structs.asdict(found), "answers": [model_object(answer) for answer in found.answers]}


def comparison_headline(found: Comparison) -> str:
    """Says in one line how many users each run holds."""
    return "; ".join(
        f"{name}: {plan_title(answer)}" for name, answer in zip(found.names, found.answers, strict=True)
    )


def comparison_title(found: Comparison) -> str:
    """Returns a title with the names of both runs. If both have the same model, the model comes first."""
    a, b = found.names
    return f"{_common_model(found)}{a} (A) and {b} (B)"


def _common_model(found: Comparison) -> str:
    first, second = (answer.model for answer in found.answers)
    return f"{first}: " if first == second else ""


def comparison_summary(found: Comparison) -> list[str]:
    """Says which run holds more users, whether the difference is more than chance, and what limits each run.

    A run is limited by the first wall that it met as users were added, such as a full KV cache.
    """
    a, b = found.names
    rows = [row for row in found.rows if row.figure == "max_users" and row.different is not None]
    answered = [pair for pair in zip(found.names, found.answers, strict=True) if not pair[1].refused]
    if any(row.different == "not_seen" and (row.a.at_least or row.b.at_least) for row in rows):
        return _not_comparable(answered)
    said = [_capacity_sentence(row, a, b) for row in rows]
    limits = [_limit(answer) for _, answer in answered]
    if len(limits) == 2 and limits[0] == limits[1]:
        return [*said, f"Both {limits[0]}."]
    return said + [f"{name} {_limit(answer)}." for name, answer in answered]


def _not_comparable(answered: Sequence[tuple[str, ModelAnswer]]) -> list[str]:
    without_wall = [name for name, answer in answered if answer.headline.at_least]
    said = [f"The number of users cannot be compared: {' and '.join(without_wall)} met no wall."]
    return said + [f"{name} {_limit(answer)}." for name, answer in answered if not answer.headline.at_least]


def _limit(answer: ModelAnswer) -> str:
    if answer.headline.at_least:
        return "met no wall"
    return f"met the {WALL_NAMES[answer.headline.binding]} wall first"


def _capacity_sentence(row: ComparisonRow, a: str, b: str) -> str:
    if row.different == "not_seen":
        return "No difference in the number of users is detected in these runs."
    low, high = row.ratio_interval or (None, None)
    more = b if (low or 0.0) > 1.0 else a
    sure = "" if row.different == "yes" else "; one such row in ten is chance"
    return f"{more} holds more users{_span(low, high, more == b)}{sure}."


def _span(low: float | None, high: float | None, direct: bool) -> str:
    """Says how many times as many users the better run holds; empty if the lower bound is not known.

    low, high: bounds on the ratio (users of run b) / (users of run a); None if not known. direct: True if
    b is the better run, False if a is.
    """
    ends = (low, high) if direct else (1.0 / high if high else None, 1.0 / low if low else None)
    if ends[0] is None:
        return ""
    return (
        f": {ends[0]:.2f} to {ends[1]:.2f} times as many"
        if ends[1]
        else f": at least {ends[0]:.2f} times as many"
    )


def row_cells(found: Comparison, row: ComparisonRow) -> list[str]:
    """Returns the cells of one table row.

    The cells are the figure's name, its value in run a and in run b, b compared with a, and whether the
    difference is more than chance.
    """
    sides = zip((row.a, row.b), found.answers, strict=True)
    return [
        row_name(row),
        *[_value(row.figure, side, answer) for side, answer in sides],
        _ratio(row),
        DIFFERENT[row.different],
    ]


def _value(figure: FigureName, side: SideFigure, answer: ModelAnswer) -> str:
    if side.value is None:
        return NONE
    if figure == "max_users" and not side.at_least:
        return f"{answer.headline.max_users} ({_spread(figure, side)})"
    text = f"at least {side.value:.0f}" if side.at_least else _plain(figure, side.value)
    if side.interval is not None and not side.at_least:
        text += f" ({_spread(figure, side)})"
    return text + "*" * side.predicted


def _spread(figure: FigureName, side: SideFigure) -> str:
    assert side.interval is not None
    low, high = side.interval
    unit = UNITS[figure][1]
    ends = f"{unit(low)} to {unit(high)}" if high is not None else f"{unit(low)} or more"
    if high is None and low <= 0.0:
        ends = "not bounded"
    return f"limit {ends}" if figure == "max_users" else ends


def _plain(figure: FigureName, value: float) -> str:
    unit, number = UNITS[figure]
    return f"{number(value)} {unit}".strip()


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:,.0f}" if value >= 0.0995 else f"{1e3 * value:.1f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"


UNITS: dict[FigureName, tuple[str, Callable[[float], str]]] = {
    "max_users": ("", lambda value: f"{value:.1f}"),
    "memory_users": ("", lambda value: f"{value:.1f}"),
    "ttft_p50_s": ("ms", _milliseconds),
    "ttft_p95_s": ("ms", _milliseconds),
    "decode_tok_s": ("tok/s", _count),
    "tpot_p95_s": ("ms", _milliseconds),
    "stall_p95_s": ("ms", _milliseconds),
    "output_tok_s": ("tok/s", _count),
    "kv_tokens_per_user": ("tokens", lambda value: f"{value:,.0f}"),
    "kv_bytes_per_user": ("MiB", lambda value: f"{value / 2**20:,.3g}"),
    "kv_bytes_per_token": ("KiB", lambda value: f"{value / 1024:,.0f}"),
    "kv_pool_tokens": ("tokens", lambda value: f"{value:,.0f}"),
    "vram_no_load_bytes": ("GiB", lambda value: f"{value / GIB:.2f}"),
    "vram_at_peak_bytes": ("GiB", lambda value: f"{value / GIB:.2f}"),
    "vram_held_bytes": ("GiB", lambda value: f"{value / GIB:.2f}"),
    "max_model_len": ("tokens", lambda value: f"{value:,.0f}"),
}


def _ratio(row: ComparisonRow) -> str:
    """Writes how b differs from a, with the interval, such as `+5.0 % (+1.0 % to +9.2 %)`.

    A ratio b / a of at most 0.5 or at least 2 is written as a factor, such as `x 2.4`.
    """
    if row.ratio is None or row.different == "equal":
        return NONE
    if row.ratio_interval is None:
        return _change(row.ratio)
    low, high = (NONE if end is None else _change(end) for end in row.ratio_interval)
    return f"{_change(row.ratio)} ({low} to {high})"


def _change(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    if not -50 < percent < 100:
        return f"x {ratio:.2g}"
    return f"{round(percent, 1) + 0.0:+.1f} %" if abs(percent) < 9.95 else f"{percent:+.0f} %"


def level_rows(found: Comparison) -> list[list[str]]:
    """Returns one row for each number of users at which both runs have a trusted level.

    A row holds the users, then TTFT p50, TTFT p95, TPOT p95 and throughput, each for run a and for run b.
    """
    rows = []
    for users in found.common_levels:
        sides = [
            next(level for level in answer.levels if level.users == users and level.trusted)
            for answer in found.answers
        ]
        times = [
            *(level.requests.ttft_s.p50 for level in sides),
            *(level.requests.ttft_s.p95 for level in sides),
            *(level.requests.tpot_s.p95 for level in sides),
        ]
        cells = [NONE if value is None else _milliseconds(value) for value in times]
        rows.append([str(users), *cells, *(f"{level.requests.output_tok_s:,.0f}" for level in sides)])
    return rows


def level_head(found: Comparison) -> list[str]:
    """Returns the column headings for the rows of `level_rows`."""
    names = ("TTFT p50 ms", "TTFT p95 ms", "TPOT p95 ms", "tokens/s")
    return ["users", *[f"{name}, {side}" for name in names for side in ("A", "B")]]


def reading_notes(found: Comparison) -> list[str]:
    """Lists notes on how to read the table."""
    said = [READING]
    if any(row.figure == "vram_held_bytes" for row in found.rows):
        said.append(MEMORY)
    if any(side.predicted and side.value is not None for row in found.rows for side in (row.a, row.b)):
        said.append(PREDICTED)
    return said


def simulated_note(found: Comparison) -> str:
    """Names the simulated servers in a sentence; empty if both servers were real."""
    presets = [answer.simulated for answer in found.answers if answer.simulated]
    if not presets:
        return ""
    listing = " and ".join(dict.fromkeys(presets))
    return f"Measured on Seatcount's simulated server ({listing}), not on hardware."


# The gate.


def criterion_line(judged: GateCriterion) -> str:
    """Returns one criterion of the gate as one line: verdict, figure name, then what was shown."""
    return f"{judged.verdict:<8}{FIGURE_NAMES[judged.figure]}: {_shown(judged)}"


def _shown(judged: GateCriterion) -> str:
    if judged.verdict == "worse":
        found = max(
            (one for one in judged.checks if one.verdict == "worse"), key=lambda one: one.at_least or 0.0
        )
        return f"{_check(judged.figure, found)}, at least {_worse(judged.figure, found.at_least or 1.0)}."
    shown = "shown" if judged.verdict == "ok" else "not shown"
    return f"not worse than {_percent(judged.margin)}: {shown}; {judged.why or _bound(judged)}"


def _bound(judged: GateCriterion) -> str:
    """Says how much worse the run may be, and where that was measured."""
    highest = judged.checks[-1]
    text = _check(judged.figure, highest)
    if judged.mean is None:
        return f"{text}, {_at_most(judged.figure, highest.at_most)}."
    users = ", ".join(map(str, judged.mean.users))
    over = f"mean over {users} users" if len(judged.mean.users) > 1 else "there"
    text += f"; {over}: {_at_most(judged.figure, judged.mean.at_most)}."
    if judged.mean.left_out:
        text += f" Too few requests to tell at {', '.join(map(str, judged.mean.left_out))}."
    return text


def _check(figure: FigureName, one: GateCheck) -> str:
    assert one.run is not None
    assert one.baseline is not None
    at = "" if one.users is None else f"at {one.users} user{'s' * (one.users > 1)} "
    return f"{at}{_plain(figure, one.run)}, baseline {_plain(figure, one.baseline)}"


def _at_most(figure: FigureName, factor: float | None) -> str:
    return "no upper bound" if factor is None else f"at most {_worse(figure, factor)}"


def _worse(figure: FigureName, factor: float) -> str:
    """Says in words how much worse a figure is. factor: how many times worse, such as 1.25.

    A factor of 1.25 is `25 % more` for a latency, and `20 % less` for throughput or users.
    """
    factor = max(factor, 1.0)
    if figure in MORE_IS_BETTER:
        return f"{_percent(1.0 - 1.0 / factor)} less"
    return f"{_percent(factor - 1.0)} more" if factor < 2.0 else f"{factor:.1f} times as much"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def gate_verdict(gate: GateAnswer) -> str:
    """Says the verdict of the gate in a sentence."""
    tolerance, margin = (f"{100 * share:g} %" for share in (gate.tolerance, gate.margin))
    if gate.verdict == "ok":
        return f"Not worse than its baseline by {margin} or more: shown."
    if gate.verdict == "worse":
        return f"Worse than its baseline by more than {tolerance}: shown."
    return (
        "No verdict: the data show neither that the run is worse than its baseline by more than "
        f"{tolerance}, nor that it is not worse by {margin}. Hold levels for longer, or raise --margin."
    )


def gate_rule(gate: GateAnswer) -> str:
    """Says how often each verdict of the gate is wrong."""
    return (
        f"Of 100 pairs of equal deployments, at most {100 * gate.false_alarms:g} are called worse; of 100 "
        f"pairs with a figure that is {100 * gate.margin:g} % worse, at most 5 pass."
    )


# Forms.


def comparison_markdown(found: Comparison) -> str:
    """Returns the whole comparison as Markdown."""
    parts = [f"# {comparison_title(found)}", "", f"{comparison_headline(found)}.", ""]
    if found.gate is not None:
        parts += [f"## Gate: {gate_verdict(found.gate)}", ""]
        parts += [f"- {criterion_line(one)}" for one in found.gate.criteria] + ["", gate_rule(found.gate), ""]
    parts += [" ".join(filter(None, [*comparison_summary(found), simulated_note(found)])), ""]
    parts += markdown_table(_head(found), [row_cells(found, row) for row in found.rows])
    parts += [f"{note}\n" for note in reading_notes(found)]
    if found.common_levels:
        parts += ["## Every common level", "", *markdown_table(level_head(found), level_rows(found))]
    if found.differs:
        rows = [(one.name, one.a, one.b) for one in found.differs]
        parts += ["## What differs between the runs", "", *markdown_table(("", *found.names), rows)]
    if found.warnings:
        parts += ["## Warnings", "", *[f"- {warning}" for warning in found.warnings], ""]
    return "\n".join([*parts, f"Made {day(found.generated_unix_s)}."]) + "\n"


def _head(found: Comparison) -> list[str]:
    return ["figure", found.names[0], found.names[1], "B against A", "real"]


def comparison_html(found: Comparison) -> str:
    """Returns the whole comparison as one self-contained HTML page."""
    from analysis.reporting.figures.compare import comparison_figures

    return page(
        "compare.html.j2",
        found=found,
        title=comparison_title(found),
        generated=day(found.generated_unix_s),
        headlines=[plan_title(answer) for answer in found.answers],
        certainties=[
            first_screen(answer, slo=found.slo, confidence=found.confidence)[0] for answer in found.answers
        ],
        summary=comparison_summary(found),
        simulated=simulated_note(found),
        gate=found.gate
        and {
            "verdict": gate_verdict(found.gate),
            "lines": [(one.verdict, criterion_line(one)[8:]) for one in found.gate.criteria],
            "rule": gate_rule(found.gate),
        },
        head=_head(found),
        rows=[(row, row_cells(found, row)) for row in found.rows],
        notes=reading_notes(found),
        level_head=level_head(found),
        levels=level_rows(found),
        objectives=objectives(found.slo),
        figures={name: Markup(text) for name, text in comparison_figures(found).items()},
    )


def _show_text(out: Console, found: Comparison) -> None:
    if found.gate is not None:
        for one in found.gate.criteria:
            out.print(criterion_line(one), soft_wrap=True, markup=False)
        out.print(f"{gate_verdict(found.gate)} {gate_rule(found.gate)}", soft_wrap=True, markup=False)
        if found.gate.verdict == "unclear":
            show_list(out, "Warnings", found.warnings)
        return
    out.print()
    out.print(comparison_headline(found), style="bold", soft_wrap=True, markup=False)
    print_indented(out, " ".join(filter(None, [*comparison_summary(found), simulated_note(found)])))
    out.print(_table(_head(found), [row_cells(found, row) for row in found.rows]))
    for note in reading_notes(found):
        print_indented(out, note, style="dim")
    show_list(out, "Warnings", found.warnings)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
