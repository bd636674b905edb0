"""Prints the workload of a server in production, and writes it as a workload file."""

from collections.abc import Iterator
from pathlib import Path

from analysis.answers.production import SeenArrivals, SeenLengths, WorkloadAnswer
from analysis.reporting.console import Output, print_indented, print_plain, show_list, terminal_table
from analysis.reporting.files import day, json_text, write_files
from analysis.reporting.numbers import percent
from analysis.reporting.production.summary import (
    CONCURRENCY_HEAD,
    concurrency_rows,
    duration_text,
    show_source,
    source_time,
)

CLASS_NAME = "production"


def show_workload(answer: WorkloadAnswer, *, as_json: bool, output: Path | None) -> None:
    """Prints the answer; `output` is the workload file that was written."""
    if as_json:
        print_plain(json_text(answer).rstrip())
        return
    out = Output()
    out.print()
    prompt, output_tokens = answer.prompt_tokens, answer.output_tokens
    print_indented(
        out,
        f"{answer.model}: prompts {prompt.distribution}, answers {output_tokens.distribution}, "
        f"{answer.arrivals.mean_per_s:.3g} requests a second",
        style="bold",
    )
    show_source(out, answer)
    for what, one in (("Prompts", prompt), ("Answers", output_tokens)):
        out.print()
        print_indented(out, f"{what}, in tokens", style="bold")
        print_indented(out, _lengths_sentence(one))
        out.print(terminal_table(("up to", "requests", "share", "by the distribution"), list(_bars(one))))
    print_indented(out, "Arrivals", style="bold")
    for sentence in _arrival_sentences(answer.arrivals):
        print_indented(out, sentence)
    hits = answer.prefix_hit_share
    known = "not known" if hits is None else f"{percent(hits)} of the prompt tokens"
    print_indented(out, f"Prefix-cache hits: {known}.")
    seen = answer.concurrency
    out.print()
    replicas = "1 replica" if seen.replicas == 1 else f"{seen.replicas} replicas"
    print_indented(out, f"At the server ({replicas}, {seen.scrapes} scrapes)", style="bold")
    out.print(terminal_table(CONCURRENCY_HEAD, concurrency_rows(seen)))
    show_list(out, "Metrics do not tell", answer.not_seen)
    show_list(out, "Warnings", answer.warnings)
    if output is not None:
        show_list(
            out,
            "Load test",
            [f"locust -f scenarios/chat.py --host http://ADDRESS:8000 --headless --workload {output}"],
        )
    out.print()


def _lengths_sentence(one: SeenLengths) -> str:
    fit = "fits" if one.fits else "DOES NOT FIT"
    return (
        f"{one.distribution} {fit}: at most {100 * one.distance:.2g} of 100 requests differ. "
        f"Mean {one.mean:,.1f}, median about {one.p50:,.0f}, p95 about {one.p95:,.0f}; "
        f"{one.requests:,} requests."
    )


def _bars(one: SeenLengths) -> Iterator[list[str]]:
    for bucket in one.buckets:
        up_to = "more" if bucket.up_to is None else f"{bucket.up_to:,.0f}"
        yield [up_to, f"{bucket.requests:,}", percent(bucket.share), percent(bucket.fitted_share)]


def _arrival_sentences(one: SeenArrivals) -> Iterator[str]:
    yield f"{one.requests:,} requests finished: {one.mean_per_s:.3g} a second in the mean."
    busiest = "hour" if one.peak_over_s == 3600 else duration_text(one.peak_over_s)
    since = f", from {day(one.peak_unix_s)}" if one.peak_unix_s is not None else ""
    yield f"Busiest {busiest}: {one.peak_per_s:.3g} a second{since}."
    if one.daily_peak_per_s is None or one.daily_peak_hour_utc is None:
        yield "Less than a day was seen, so a daily peak is not known."
        return
    hour = one.daily_peak_hour_utc
    yield (
        f"Daily peak: {one.daily_peak_per_s:.3g} a second from {hour:02d} to {(hour + 1) % 24:02d} h UTC, "
        "the mean over days."
    )


def write_workload_file(answer: WorkloadAnswer, path: Path) -> None:
    """Writes the workload as TOML. Raises InputError if this is not possible."""
    write_files(path.parent, {path.name: workload_file_text(answer)})


def workload_file_text(answer: WorkloadAnswer) -> str:
    """Returns the workload file of an answer: one class of users, with comments on what is known how."""
    slo, arrivals = answer.slo, answer.arrivals
    simulated = f", SIMULATED ({answer.simulated})" if answer.simulated is not None else ""
    lines = [
        f"# Workload of {answer.model} in production{simulated}.",
        f"# From vLLM's histograms by {answer.source}, {source_time(answer)}.",
        f"# {arrivals.requests} requests, {arrivals.mean_per_s:.3g} a second, "
        f"{arrivals.peak_per_s:.3g} a second in the busiest {duration_text(arrivals.peak_over_s)}.",
        f"# In flight: {answer.concurrency.in_flight.mean:.1f} in the mean, "
        f"{answer.concurrency.in_flight.peak:.0f} at the peak, on {answer.concurrency.replicas} replicas.",
        "# Not seen, so assumed below:",
        *(f"# - {one}" for one in answer.not_seen),
        "",
        "[[class]]",
        f'name = "{CLASS_NAME}"',
        "weight = 1",
        *_length_lines("prompt_tokens", answer.prompt_tokens),
        *_length_lines("output_tokens", answer.output_tokens),
        *_shared_lines(answer),
        "turns = 1",
        'think_s = "0"',
        f"objectives = {{ ttft_p95_s = {slo.ttft_p95_s!r}, tpot_p95_s = {slo.tpot_p95_s!r} }}",
    ]
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def _length_lines(name: str, one: SeenLengths) -> list[str]:
    fit = "" if one.fits else "DOES NOT FIT: "
    return [
        f"# {fit}mean {one.mean:.1f}, p95 about {one.p95:.0f}; distance from the buckets {one.distance:.3f}",
        f'{name} = "{one.distribution}"',
    ]


def _shared_lines(answer: WorkloadAnswer) -> list[str]:
    """Returns the line of the shared prefix: none, with what would be assumed for the hits that were seen."""
    hits = answer.prefix_hit_share
    if hits is None:
        return ["# Prefix-cache hits are not known.", "shared_tokens = 0"]
    said = f"# {100 * hits:.1f} % of the prompt tokens were prefix-cache hits."
    shared = round(hits * answer.prompt_tokens.mean)
    if shared < 1:
        return [said, "shared_tokens = 0"]
    return [
        f"{said} Whether one system prompt or histories",
        "# made them is not seen, so none are made here: prompts are computed whole, which is harder than",
        f"# production. If all hits are one system prompt, it has about {shared} tokens: set shared_tokens",
        "# to it, and make prompt_tokens shorter by as much, since it is the new text of a turn.",
        "shared_tokens = 0",
    ]
