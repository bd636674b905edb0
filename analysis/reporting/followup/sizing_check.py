"""Prints a sizing held against a load test, as text, Markdown or JSON. Knows no maths."""

from collections.abc import Callable

from analysis.answers.sizing_check import CheckedFigure, SizingCheck
from analysis.reporting.console import (
    Output,
    markdown_table,
    print_indented,
    print_plain,
    show_list,
    terminal_table,
)
from analysis.reporting.files import json_text
from analysis.reporting.numbers import NONE, milliseconds
from analysis.reporting.words import WALL_NAMES, wall_name

CHECK_HEAD = ("figure", "predicted (90 %)", "measured (90 %)", "verdict")
FIGURE_WORDS: dict[str, str] = {
    "pool_tokens": "KV pool, tokens",
    "kv_bytes_per_token": "KV cache a token, bytes",
    "tokens_per_user": "KV tokens a request",
    "users": "users at the first wall",
    "decode_tok_s_alone": "decode rate, tok/s",
    "output_tok_s": "throughput, tok/s",
}


def show_sizing_check(found: SizingCheck, *, form: str) -> None:
    """Prints the check in one of the forms text, markdown and json."""
    if form == "json":
        print_plain(json_text(found).rstrip())
    elif form == "markdown":
        print_plain(_markdown(found))
    else:
        _show_text(found)


def _show_text(found: SizingCheck) -> None:
    out = Output()
    out.print()
    print_indented(out, sizing_check_title(found), style="bold")
    print_indented(out, f"Load test: {', '.join(found.runs)}.")
    show_list(out, "What differs between sizing and load test", found.differs)
    out.print(terminal_table(CHECK_HEAD, _rows(found)))
    for title, lines in _sections(found):
        show_list(out, title, lines)
    out.print()


def _markdown(found: SizingCheck) -> str:
    lines = [f"# {sizing_check_title(found)}", "", f"Load test: {', '.join(found.runs)}.", ""]
    sections = [("What differs between sizing and load test", found.differs), *_sections(found)]
    lines += markdown_table(CHECK_HEAD, _rows(found))
    for title, entries in sections:
        if entries:
            lines += [f"## {title}", "", *(f"- {entry}" for entry in entries), ""]
    return "\n".join(lines).rstrip()


def sizing_check_title(found: SizingCheck) -> str:
    """Says in one line how many predicted figures the load test supports and refutes."""
    counts = [(found.counted("supported"), "supported"), (found.counted("refuted"), "refuted")]
    counts.append((found.counted("not established"), "not established"))
    said = ", ".join(f"{count} {verdict}" for count, verdict in counts)
    return f"The sizing of {found.model} on {found.gpu} against its load test: {said}"


def _sections(found: SizingCheck) -> list[tuple[str, list[str]]]:
    named = [(figure_name(one), one) for one in found.figures]
    wall = found.binding
    refuted = [f"{name}: {one.reason}." for name, one in named if one.verdict == "refuted"]
    refuted += [f"first wall: {wall.reason}."] if wall.verdict == "refuted" else []
    not_told = [f"{name}: {one.reason}." for name, one in named if one.verdict == "not established"]
    not_told += [f"first wall: {wall.reason}."] if wall.verdict == "not established" else []
    return [
        ("Refuted", refuted),
        ("Not established", not_told),
        ("To correct", list(dict.fromkeys(one.correct for one in found.figures if one.correct))),
        ("Warnings", list(found.warnings)),
    ]


def _rows(found: SizingCheck) -> list[list[str]]:
    wall = found.binding
    measured = NONE if wall.measured == "not_reached" else WALL_NAMES[wall.measured]
    p = wall.p_measured.get(wall.measured)
    sure = "" if p is None else f" ({100 * p:.0f} % sure)"
    rows = [_row(one) for one in found.figures]
    return [*rows, ["first wall", WALL_NAMES[wall.predicted], f"{measured}{sure}", wall.verdict]]


def _row(one: CheckedFigure) -> list[str]:
    words = _number_words(one.figure)
    low, x, high = one.predicted
    predicted = words(x) if low == high else f"{words(x)} ({words(low)} to {words(high)})"
    return [figure_name(one), predicted, _measured(one, words), one.verdict]


def _measured(one: CheckedFigure, words: Callable[[float], str]) -> str:
    if one.interval is None:
        return NONE
    low, high = one.interval
    if one.measured is None or high is None:
        return f"at least {words(low)}"
    return words(one.measured) if low == high else f"{words(one.measured)} ({words(low)} to {words(high)})"


def figure_name(one: CheckedFigure) -> str:
    """Returns the name of a checked figure, with its unit and load."""
    if one.figure.startswith("users_"):
        return f"users: {wall_name(one.figure.removeprefix('users_'))}"
    name = FIGURE_WORDS.get(one.figure) or _latency_name(one.figure)
    return name if one.users is None else f"{name} at {one.users} user{'s' * (one.users > 1)}"


def _latency_name(figure: str) -> str:
    """Returns the name of a latency: `ttft_p95_s` is `TTFT p95, ms`."""
    kind, percentile, _ = figure.split("_")
    return f"{kind.upper()} {percentile}, ms"


def _number_words(figure: str) -> Callable[[float], str]:
    if figure.endswith("_s") and not figure.startswith(("output", "decode")):
        return milliseconds
    if figure.startswith(("users", "decode")):
        return lambda value: f"{value:.1f}"
    return lambda value: f"{value:,.0f}"
