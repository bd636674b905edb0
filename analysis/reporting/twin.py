"""Prints the answer of a twin as text or JSON, and writes its files. Knows no maths.

A twin is a simulated copy of the server, fitted to a run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.answers.twin import FleetAnswer, Prediction, TwinAnswer
from analysis.reporting.console import Output, print_indented, print_plain, show_list, terminal_table
from analysis.reporting.files import json_text, write_files
from analysis.reporting.numbers import NONE
from analysis.reporting.words import WALL_NAMES

TWIN_JSON, TWIN_SVG = "twin.json", "twin.svg"
TWIN_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("TTFT p50 ms", "ttft_p50_s", lambda value: _digits(1e3 * value)),
    ("TTFT p95 ms", "ttft_p95_s", lambda value: _digits(1e3 * value)),
    ("TPOT p50 ms", "tpot_p50_s", lambda value: _digits(1e3 * value)),
    ("TPOT p95 ms", "tpot_p95_s", lambda value: _digits(1e3 * value)),
    ("stall p95 ms", "stall_p95_s", lambda value: _digits(1e3 * value)),
    ("tok/s", "output_tok_s", lambda value: f"{value:,.0f}"),
    ("KV usage", "kv_usage", lambda value: f"{100 * value:.1f} %"),
    ("running", "running", lambda value: f"{value:.1f}"),
    ("waiting", "waiting", lambda value: f"{value:.1f}"),
    ("preempted", "preempted_fraction", lambda value: f"{100 * value:.1f} %"),
    ("cache hits", "prefix_hit_rate", lambda value: f"{100 * value:.0f} %"),
)
TWIN_CLASS_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("TTFT p95 ms", "ttft_p95_s", lambda value: _digits(1e3 * value)),
    ("too late", "ttft_miss", lambda value: f"{100 * value:.1f} %"),
    ("TPOT p95 ms", "tpot_p95_s", lambda value: _digits(1e3 * value)),
    ("too slow", "tpot_miss", lambda value: f"{100 * value:.1f} %"),
    ("stall p95 ms", "stall_p95_s", lambda value: _digits(1e3 * value)),
)
TERM_WORDS = {
    "step_base_s": ("a step", 1e3, "ms"),
    "step_per_seq_s": ("each sequence in it", 1e6, "us"),
    "step_per_kv_token_s": ("each KV token read", 1e9, "ns"),
    "prefill_per_token_s": ("each prompt token computed", 1e6, "us"),
    "overhead_s": ("between engine and client", 1e3, "ms"),
    "overhead_per_user_s": ("more of that with each user", 1e6, "us"),
}


def show_twin(answer: TwinAnswer, *, as_json: bool) -> None:
    """Prints the answer of a twin."""
    if as_json:
        print_plain(json_text(answer).rstrip())
        return
    out = Output()
    out.print()
    print_indented(out, f"The twin of {answer.source}", style="bold")
    if answer.fitted_users:
        print_indented(out, f"Fitted to the levels of {', '.join(map(str, answer.fitted_users))} users.")
    show_list(out, "Step time", [_term(term.name, term.value, term.interval) for term in answer.terms])
    if answer.check is not None:
        print_indented(out, "")
        print_indented(
            out, f"Its error at {answer.check.users} users, from a fit to the other levels", style="bold"
        )
        out.print(terminal_table(("", *_names([answer.check])), _check_rows(answer.check)))
        others = [one for one in answer.left_out if one is not answer.check]
        if others:
            print_indented(out, "Its error at the other levels, each left out in turn", style="bold")
            out.print(terminal_table(("users", *_names(others)), _error_rows(others)))
    if answer.changes:
        show_list(out, "Changed", answer.changes)
    print_indented(out, "")
    print_indented(out, "Predicted, with 90 % intervals for what a load test would measure", style="bold")
    out.print(terminal_table(("users", *_names(answer.predictions)), _rows(answer.predictions)))
    if rows := _class_rows(answer.predictions):
        print_indented(out, "Of it, each class of users", style="bold")
        out.print(terminal_table(("users", "class", *(name for name, _, _ in TWIN_CLASS_COLUMNS)), rows))
    if answer.limit is not None:
        print_indented(out, _limit_text(answer), style="bold")
    for line in _fleet_lines(answer.fleet):
        print_indented(out, line)
    show_list(out, "Warnings", answer.warnings)
    out.print()


def write_twin(answer: TwinAnswer, *, folder: Path) -> None:
    """Writes twin.json, and also twin.svg if there are several predictions.

    Raises InputError if the files cannot be written.
    """
    from analysis.reporting.figures.style import svg
    from analysis.reporting.figures.twin import draw_twin

    files = {TWIN_JSON: json_text(answer)}
    if len(answer.predictions) > 1:
        files[TWIN_SVG] = svg(lambda axes: draw_twin(axes, answer), (7.2, 3.2))
    write_files(folder, files)


def _term(name: str, value: float, interval: tuple[float, float]) -> str:
    words, scale, unit = TERM_WORDS[name]
    if interval[0] == interval[1]:
        return f"{words}: {_digits(scale * value)} {unit}"
    low, high = (scale * end for end in interval)
    return f"{words}: {_digits(scale * value)} {unit} ({_digits(low)} to {_digits(high)})"


def _names(predictions: Sequence[Prediction]) -> list[str]:
    return [name for name, _, _ in _columns(predictions)]


def _columns(predictions: Sequence[Prediction]) -> list[tuple[str, str, Callable[[float], str]]]:
    return [column for column in TWIN_COLUMNS if any(column[1] in one.values for one in predictions)]


def _check_rows(check: Prediction) -> list[list[str]]:
    columns = _columns([check])
    both = [(check.values.get(key), check.measured.get(key)) for _, key, _ in columns]
    return [
        ["predicted", *(_cell(check.values, key, words) for _, key, words in columns)],
        ["measured", *(_cell(check.measured, key, words) for _, key, words in columns)],
        ["error", *(_error(key, *pair) for (_, key, _), pair in zip(columns, both, strict=True))],
    ]


def _error_rows(checks: Sequence[Prediction]) -> list[list[str]]:
    columns = _columns(checks)
    return [
        [str(one.users), *(_error(key, one.values.get(key), one.measured.get(key)) for _, key, _ in columns)]
        for one in checks
    ]


def _error(key: str, predicted: float | None, measured: float | None) -> str:
    if predicted is None or measured is None:
        return NONE
    if key in ("kv_usage", "preempted_fraction", "prefix_hit_rate"):
        return f"{100 * (predicted - measured):+.1f}"
    return f"{100 * (predicted / measured - 1):+.0f} %" if measured else NONE


def _rows(predictions: Sequence[Prediction]) -> list[list[str]]:
    columns = _columns(predictions)
    found = []
    for one in predictions:
        name = str(one.users) if one.users else "open loop"
        found.append([name, *(_cell(one.values, key, words) for _, key, words in columns)])
        reach = [_reach(one.intervals.get(key), one.values.get(key, 0.0), words) for _, key, words in columns]
        found.append(["", *reach])
        if one.measured:
            note = "held out" if one.held_out else "measured"
            found.append([note, *(_cell(one.measured, key, words) for _, key, words in columns)])
    return found


def _class_rows(predictions: Sequence[Prediction]) -> list[list[str]]:
    return [
        [str(one.users) if one.users else "open loop", name]
        + [_cell(values, key, words) for _, key, words in TWIN_CLASS_COLUMNS]
        for one in predictions
        for name, values in one.classes.items()
    ]


def _cell(values: dict[str, float], key: str, words: Callable[[float], str]) -> str:
    return words(values[key]) if key in values else NONE


def _reach(pair: tuple[float, float] | None, value: float, words: Callable[[float], str]) -> str:
    """Formats the distance from a value to the farther end of its interval, such as `± 3`."""
    return NONE if pair is None else f"± {words(max(pair[1] - value, value - pair[0]))}"


def _limit_text(answer: TwinAnswer) -> str:
    found = answer.limit
    assert found is not None
    if found.x is None:
        return "No wall was found."
    if not found.x:
        return "Not even one user fits within the objectives."
    low, high = found.interval
    ends = f"{_users(low)} to {_users(high)}"
    wall = _wall(found.wall) + (f" of {found.user_class}" if found.user_class is not None else "")
    return f"Holds {found.x:.1f} users within the objectives ({ends}). What limits: {wall}."


def _wall(name: str) -> str:
    return dict[str, str](WALL_NAMES.items()).get(name, name)


def _users(value: float | None) -> str:
    return "no limit" if value is None else f"{value:.1f}"


def _fleet_lines(fleets: Sequence[FleetAnswer]) -> list[str]:
    if not fleets:
        return []
    asked = fleets[0]
    first = (
        f"A replica holds at least {asked.per_replica:.1f} users behind a {asked.router} router (95 % sure; "
        f"estimate: {_users(asked.per_replica_estimate)}), and fleets are sized for so many. "
        f"What limits: {_wall(asked.binding)}. "
        f"TTFT p95 {_digits(1e3 * asked.usual_ttft_p95_s)} ms with all replicas, "
        f"{_digits(1e3 * asked.after_loss_ttft_p95_s)} ms after the loss of {asked.spare}."
    )
    return [first, *(_fleet_line(fleet) for fleet in fleets)]


def _fleet_line(fleet: FleetAnswer) -> str:
    cost = f", {fleet.price_per_hour:,.2f} an hour" if fleet.price_per_hour else ""
    replicas = f"{fleet.replicas:,} replicas ({fleet.replicas_by_estimate:,} by the estimate)"
    return f"{fleet.users:,} users: {replicas}, {fleet.spare} of them spare{cost}"


def _digits(value: float) -> str:
    """Formats a number with about three significant digits, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
