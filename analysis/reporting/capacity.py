"""Answer -> text, Markdown, JSON, HTML. The only place of analysis that prints. Knows no maths."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.answers.capacity import WALL_NAMES, Answer, Bound, LevelAnswer, Lever, ModelAnswer
from analysis.levels.open_loop import Slice
from analysis.reporting.console import PLAIN_WIDTH, Output, grid, say, show_list, table
from analysis.reporting.files import day, json_text, page, slug, write_files
from analysis.reporting.numbers import (
    NONE,
    fine_milliseconds,
    gib,
    milliseconds,
    percent,
    percentile_cells,
    tokens_text,
    users_text,
)
from analysis.walls.names import WallName
from loadtest.record import Slo

JSON_FILE, HTML_FILE, MARKDOWN_FILE = "capacity.json", "report.html", "report.md"
NARROW_LEAVES_OUT = ("TTFT p50 ms", "goodput req/s", "blocked", "errors")
DASH_NOTE = (
    "A dash: too few independent requests for that percentile (59 for a p95): those that share a batch and a "
    "queue count as fewer."
)

WALL_WORDS: dict[WallName, str] = {
    "kv_cache": "GPU memory for the KV cache: with more users, requests wait for memory, or are preempted "
    "and computed again.",
    "prefix_cache": "the prefix cache: with more users, the histories of those who think are evicted before "
    "their next turn and computed again, although the KV cache in use looks small.",
    "ttft": "the time to first token: with more users, answers start too late.",
    "tpot": "the time per output token: with more users, answers come too slowly.",
    "throughput": "throughput: with more users, the server makes fewer tokens a second in all.",
    "max_num_seqs": "the server's max_num_seqs: every further request waits for a slot while memory is free.",
    "errors": "errors: with more users, the server turns requests away.",
    "not_reached": "nothing yet: no wall was reached.",
}
BASIS_WORDS = {
    "measured": "a level stood there",
    "interpolated": "between two levels",
    "extrapolated": "beyond the levels",
    "model": "from the formula alone",
}


# Words that every form of the report shares.


def headline(model: ModelAnswer) -> str:
    """How many users, in a few words."""
    if model.open_loop:
        return "Open loop, no number of users"
    if model.max_users is None:
        return "No answer: the data cannot support one"
    users = users_text(model.max_users)
    return f"At least {users}" if model.at_least else users


def certainty(model: ModelAnswer, *, confidence: float) -> str:
    """How sure."""
    if model.refused:
        return " ".join(model.reasons)
    if model.interval is None or model.interval[1] is None:
        return "Nothing broke up to there: run higher levels to find the limit."
    low, high = model.interval
    sure = f"{100 * confidence:.0f} %"
    if low == high:
        return f"Best estimate {model.estimate}: {sure} sure that the limit is {users_text(low)}."
    return f"Best estimate {model.estimate}: {sure} sure that the limit lies between {low} and {high} users."


def limit(model: ModelAnswer) -> str:
    """What binds, and how sure that is."""
    if model.open_loop:
        return ""
    if model.refused:
        return "Nothing can be said about what limits this server."
    text = f"Limited by {WALL_WORDS[model.binding]}"
    if model.at_least and model.bounds:
        nearest = model.bounds[0]
        return (
            f"{text} The {WALL_NAMES[nearest.name]} wall is predicted at about {users_text(nearest.users)}."
        )
    others = [
        f"{WALL_NAMES[_wall(name)]} {100 * p:.0f} %"
        for name, p in model.p_binding.items()
        if name != model.binding and p >= 0.05
    ]
    if others:
        own = model.p_binding.get(model.binding, 0.0)
        text += f" ({100 * own:.0f} % sure; else {', '.join(others)}.)"
    return text


def _wall(name: str) -> WallName:
    wall: WallName = msgspec.convert(name, WallName)
    return wall


def lever_text(lever: Lever) -> str:
    """One change and what it would bring."""
    change = lever.change[0].upper() + lever.change[1:]
    if lever.users is None or lever.gain_users is None:
        return f"{change} ({lever.note})." if lever.note else f"{change}."
    text = f"{change}: about {users_text(lever.users)} ({lever.gain_users:+d})"
    if lever.beyond:
        text += ", far beyond what was measured"
    if lever.limited_by is not None:
        text += f", then limited by {WALL_NAMES[lever.limited_by]}"
    return f"{text}{'; ' + lever.note if lever.note else ''}."


def objectives(slo: Slo) -> list[str]:
    """What a level must meet to hold its users."""
    return [
        f"95 of 100 requests see their first token within {slo.ttft_p95_s:g} s",
        f"95 of 100 requests get a token at least every {1e3 * slo.tpot_p95_s:g} ms",
        f"at most {percent(slo.preempted_fraction)} preemptions for each finished request",
        f"a request waits for memory at most {percent(slo.kv_blocked_fraction)} of the time",
    ]


LEVEL_COLUMNS = (
    ("users", "users"),
    ("ended", "requests that ended in the window"),
    ("TTFT p50 ms", "sent to first token"),
    ("TTFT p95 ms", "sent to first token"),
    ("TPOT p95 ms", "time per output token after the first"),
    ("tokens/s", "output of all users"),
    ("goodput req/s", "requests a second that met every objective"),
    ("KV cache", "share of the pool in use"),
    ("preempted", "preemptions for each finished request"),
    ("blocked", "share of time in which a request waited for memory"),
    ("errors", "requests that failed"),
    ("trusted", "fit for the fits"),
)


def level_cells(level: LevelAnswer) -> list[str]:
    """In the order of LEVEL_COLUMNS."""
    return [
        str(level.users),
        f"{level.n:,}",
        milliseconds(level.ttft_s.p50),
        milliseconds(level.ttft_s.p95),
        milliseconds(level.tpot_s.p95),
        f"{level.output_tok_s:,.0f}",
        f"{level.goodput_rps:.1f}",
        percent(level.kv_cache_usage),
        percent(level.preempted_fraction),
        percent(level.kv_blocked_fraction),
        str(level.errors) if level.errors else "0",
        "yes" if level.trusted else "no",
    ]


SLICE_COLUMNS = (
    ("seconds", "after the start of the arrivals"),
    ("due/s", "requests that were due, a second"),
    ("ended/s", "requests that ended, a second"),
    ("in flight", "mean"),
    ("tokens/s", "output of the requests that ended"),
    ("late p99 ms", "from due to sent: how late the load generator was"),
    ("TTFT p50 ms", "from sent"),
    ("TTFT p95 ms", "from sent"),
    ("from due p50 ms", "TTFT from when it was due"),
    ("from due p95 ms", "TTFT from when it was due"),
    ("errors", "requests that failed"),
    ("trusted", "the load generator's times are good"),
)


def slice_cells(one: Slice) -> list[str]:
    """In the order of SLICE_COLUMNS."""
    return [
        f"{one.from_s:.0f}–{one.to_s:.0f}",
        f"{one.due_rps:.1f}",
        f"{one.ended_rps:.1f}",
        f"{one.in_flight:.1f}",
        f"{one.output_tok_s:,.0f}",
        milliseconds(one.due_to_sent_s.p99),
        milliseconds(one.ttft_s.p50),
        milliseconds(one.ttft_s.p95),
        milliseconds(one.due_ttft_s.p50),
        milliseconds(one.due_ttft_s.p95),
        str(one.errors),
        "no" if one.why_not else "yes",
    ]


def wall_cells(bound: Bound) -> list[str]:
    """Name, users, interval, basis."""
    low, high = bound.interval_x
    span = f"{low:.1f} to {high:.1f}" if high - low >= 0.05 else "exact"
    return [WALL_NAMES[bound.name], f"{bound.users_x:.1f}", span, BASIS_WORDS[bound.basis]]


def memory_rows(model: ModelAnswer) -> list[tuple[str, str]]:
    """What is known of the KV cache, label and value."""
    found = model.memory
    per = found.bytes_per_token
    rows = [
        ("KV pool", tokens_text(found.pool_tokens, per)),
        ("a request in flight holds (mean)", tokens_text(found.tokens_per_user, per)),
        ("its spread (standard deviation)", tokens_text(found.tokens_per_user_sd, per)),
        ("the server's gauge says", tokens_text(found.gauge_tokens_per_user, per)),
        ("gauge against requests running, R²", NONE if found.r2 is None else f"{found.r2:.3f}"),
        ("one token", NONE if per is None else f"{per / 1024:,.0f} KiB"),
        ("GPU memory beside the KV cache", gib(found.vram_base_bytes)),
    ]
    rows.append(("prompt tokens found in the prefix cache", _hit_rates(model.levels)))
    if found.shared_prefix_tokens:
        rows.insert(3, ("prompt prefix that all share", tokens_text(found.shared_prefix_tokens, per)))
    return [(label, value) for label, value in rows if value != NONE]


def _hit_rates(levels: Sequence[LevelAnswer]) -> str:
    """At the lowest and the highest load; a dash where nothing is ever found."""
    known = [level for level in levels if level.trusted and level.prefix_hit_rate is not None]
    if not any(level.prefix_hit_rate for level in known):
        return NONE
    ends = known[:1] if len(known) == 1 else [known[0], known[-1]]
    return ", ".join(f"{percent(level.prefix_hit_rate)} with {users_text(level.users)}" for level in ends)


def latency_rows(model: ModelAnswer) -> list[tuple[str, str]]:
    """The step-time model, label and value."""
    found = model.latency
    rows = [
        ("a decode step takes at least", fine_milliseconds(found.step_base_s)),
        ("each sequence adds", fine_milliseconds(found.step_per_seq_s)),
        ("each prompt token adds", fine_milliseconds(found.prefill_per_token_s)),
        ("90 % of the most throughput at", _knee(model)),
        (
            "timings are good to",
            NONE if model.timing_error_s is None else f"± {1e3 * model.timing_error_s:.1f} ms at this load",
        ),
    ]
    return [(label, value) for label, value in rows if value != NONE]


def _knee(model: ModelAnswer) -> str:
    """Only as far as twice the highest load: beyond that the fit is a guess."""
    knee, loads = model.latency.knee_users, [level.in_flight for level in model.levels if level.trusted]
    if knee is None or not loads:
        return NONE
    seen = max(loads)
    return f"{knee:,.0f} requests in flight" if knee <= 2 * seen else f"more than {2 * seen:.0f} in flight"


# Files.


def write(answer: Answer, *, folder: Path) -> None:
    """capacity.json, report.html, report.md and figures. Raises InputError where it may not write."""
    from analysis.reporting import figures as plots

    drawn = [plots.figures(model, answer.slo) for model in answer.models]
    files = {
        JSON_FILE: json_text(answer),
        HTML_FILE: html(answer, drawn),
        MARKDOWN_FILE: markdown(answer, drawn),
    }
    for model, figures in zip(answer.models, drawn, strict=True):
        files |= {figure_file(answer, model, name): text for name, text in figures.items()}
    write_files(folder, files, make_folder=False, otherwise="copy the runs elsewhere")


def html(answer: Answer, drawn: Sequence[dict[str, str]]) -> str:
    """One self-contained page. drawn: the figures of each model, name -> SVG."""
    return page(
        "report.html.j2",
        answer=answer,
        models=[
            render_page(model, figures, answer) for model, figures in zip(answer.models, drawn, strict=True)
        ],
        generated=day(answer.generated_unix_s),
        objectives=objectives(answer.slo),
        level_columns=LEVEL_COLUMNS,
        slice_columns=SLICE_COLUMNS,
    )


def not_met_text(model: ModelAnswer) -> str:
    """Walls that were not met; empty when all were."""
    if not model.not_met:
        return ""
    names = ", ".join(WALL_NAMES[wall.name] for wall in model.not_met)
    return f"No wall up to {users_text(model.not_met[0].up_to_users)} from: {names}."


def markdown(answer: Answer, drawn: Sequence[dict[str, str]]) -> str:
    """The report as Markdown, with links to the figures' files."""
    parts = ["# Seatcount: how many users?", ""]
    for model, figures in zip(answer.models, drawn, strict=True):
        parts += _markdown_model(answer, model, figures)
    parts += ["## Objectives", "", *[f"- {text}" for text in objectives(answer.slo)], ""]
    parts += [f"Made {day(answer.generated_unix_s)}. Definitions: docs/method.md."]
    return "\n".join(parts) + "\n"


def _markdown_model(answer: Answer, model: ModelAnswer, figures: dict[str, str]) -> list[str]:
    parts = [f"## {model.model}: {headline(model)}", "", certainty(model, confidence=answer.confidence), ""]
    parts += [limit(model), ""]
    if model.levers:
        parts += [
            f"What would raise the estimate of {model.estimate}:",
            "",
            *[f"- {lever_text(lever)}" for lever in model.levers],
            "",
        ]
    parts += [f"![{name}]({figure_file(answer, model, name)})\n" for name in figures]
    if model.bounds:
        parts += ["### Walls", ""]
        parts += grid(("wall", "users", "interval", "basis"), [wall_cells(bound) for bound in model.bounds])
    if model.not_met:
        parts += [not_met_text(model), ""]
    if model.levels:
        parts += ["### Levels", ""]
        parts += grid([name for name, _ in LEVEL_COLUMNS], [level_cells(level) for level in model.levels])
        parts += [DASH_NOTE, ""]
    if model.open_loop:
        parts += ["### Open loop", ""]
        parts += grid([name for name, _ in SLICE_COLUMNS], [slice_cells(one) for one in model.open_loop])
    parts += [f"- {label}: {value}" for label, value in memory_rows(model) + latency_rows(model)]
    if model.warnings:
        parts += ["", "### Warnings", "", *[f"- {warning}" for warning in model.warnings]]
    return [*parts, ""]


def show(answer: Answer, *, folder: Path, console: Console | None = None) -> None:
    """Prints the answer, then the evidence."""
    out = console or Output()
    for model in answer.models:
        _show_model(out, answer, model)
    out.print(f"Report: {folder / HTML_FILE}", soft_wrap=True, markup=False)


def _show_model(out: Console, answer: Answer, model: ModelAnswer) -> None:
    colour = "red" if model.refused else "green"
    out.print()
    out.print(Text.assemble((f"{model.model}: ", "bold"), (headline(model), f"bold {colour}")))
    for text in filter(None, (certainty(model, confidence=answer.confidence), limit(model))):
        say(out, text)
    if model.simulated:
        say(out, f"Measured on Seatcount's simulated server ({model.simulated}).")
    levers = [lever_text(lever) for lever in model.levers]
    show_list(out, f"What would raise the estimate of {model.estimate}", levers)
    out.print()
    if model.bounds:
        out.print(
            table(("wall", "users", "interval", "basis"), [wall_cells(bound) for bound in model.bounds])
        )
    if model.not_met:
        say(out, not_met_text(model) + "\n", style="dim")
    if model.levels:
        out.print(_level_table(model, narrow=out.width < PLAIN_WIDTH))
        if any(level.ttft_s.p95 is None or level.tpot_s.p95 is None for level in model.levels):
            say(out, DASH_NOTE, style="dim")
    if model.open_loop:
        out.print(table([name for name, _ in SLICE_COLUMNS], [slice_cells(one) for one in model.open_loop]))
    facts = memory_rows(model) + latency_rows(model)
    show_list(out, "Memory and speed", [f"{label}: {value}" for label, value in facts])
    show_list(out, "Warnings", model.warnings)
    out.print()


def _level_table(model: ModelAnswer, *, narrow: bool) -> Table:
    names = [name for name, _ in LEVEL_COLUMNS]
    kept = [place for place, name in enumerate(names) if not (narrow and name in NARROW_LEAVES_OUT)]
    rows = [level_cells(level) for level in model.levels]
    return table([names[place] for place in kept], [[row[place] for place in kept] for row in rows])


def figure_file(answer: Answer, model: ModelAnswer, name: str) -> str:
    if len(answer.models) == 1:
        return f"{name}.svg"
    return f"{slug(model.model)}-{name}.svg"


def render_page(model: ModelAnswer, figures: dict[str, str], answer: Answer) -> dict[str, object]:
    """What the template shows of one model, all of it text."""
    return {
        "answer": model,
        "headline": headline(model),
        "certainty": certainty(model, confidence=answer.confidence),
        "limit": limit(model),
        "levers": [lever_text(lever) for lever in model.levers],
        "levels": [(level, level_cells(level)) for level in model.levels],
        "walls": [(bound, wall_cells(bound)) for bound in model.bounds],
        "not_met": not_met_text(model),
        "memory": memory_rows(model),
        "latency": latency_rows(model),
        "slices": [slice_cells(one) for one in model.open_loop],
        "percentiles": [percentile_cells(level) for level in model.levels],
        "figures": {name: Markup(text) for name, text in figures.items()},
        "slug": slug(model.model),
    }
