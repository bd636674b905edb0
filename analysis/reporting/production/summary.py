"""Words that the reports on a server in production have in common."""

from rich.console import Console

from analysis.answers.production import HeadroomAnswer, SeenConcurrency, SeenCount, WorkloadAnswer
from analysis.reporting.console import print_indented
from analysis.reporting.files import day


def show_source(out: Console, answer: WorkloadAnswer | HeadroomAnswer) -> None:
    """Prints where the figures are from, and of which time."""
    print_indented(out, f"{answer.source}, {source_time(answer)}.")
    if answer.simulated is not None:
        print_indented(
            out, f"SIMULATED: this is Seatcount's embedded server ({answer.simulated}), not hardware."
        )


def source_time(answer: WorkloadAnswer | HeadroomAnswer) -> str:
    """Says of which time the figures are."""
    span = duration_text(answer.to_unix_s - answer.from_unix_s)
    if not answer.times_known:
        return f"{span} (time of day not known)"
    return f"{span} to {day(answer.to_unix_s)}"


def duration_text(seconds: float) -> str:
    """Formats a duration in its largest fitting unit."""
    for unit_s, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.1f} {name}"
    return f"{seconds:.0f} s"


def concurrency_rows(seen: SeenConcurrency) -> list[list[str]]:
    """Returns the rows of a table of requests at the server, below the head CONCURRENCY_HEAD."""
    counts = (("running", seen.running), ("waiting", seen.waiting), ("in flight", seen.in_flight))
    return [[name, *_cells(one)] for name, one in counts if one is not None]


CONCURRENCY_HEAD = ("requests", "now", "mean", "p95", "peak", "when")


def _cells(one: SeenCount) -> list[str]:
    when = day(one.peak_unix_s) if one.peak_unix_s is not None and one.peak > 0 else ""
    return [f"{one.now:.0f}", f"{one.mean:.1f}", f"{one.p95:.0f}", f"{one.peak:.0f}", when]
