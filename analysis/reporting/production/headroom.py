"""Prints the headroom of a server in production, and its rules for Prometheus."""

from collections.abc import Iterator
from pathlib import Path

from analysis.answers.production import HeadroomAnswer, SeenMemory, SeenWall
from analysis.reporting.console import Output, print_indented, print_plain, show_list, terminal_table
from analysis.reporting.files import json_text, write_files
from analysis.reporting.numbers import NONE, percent
from analysis.reporting.production.summary import CONCURRENCY_HEAD, concurrency_rows, show_source
from analysis.reporting.words import wall_name

WALL_HEAD = ("wall", "in flight a replica", "90 %", "known from")


def show_headroom(answer: HeadroomAnswer, *, as_json: bool) -> None:
    """Prints the answer."""
    if as_json:
        print_plain(json_text(answer).rstrip())
        return
    out = Output()
    out.print()
    print_indented(out, f"{answer.model}: {_headline(answer)}", style="bold")
    show_source(out, answer)
    print_indented(
        out,
        f"TTFT p95 at most {answer.slo.ttft_p95_s:g} s, TPOT p95 at most {answer.slo.tpot_p95_s:g} s.",
    )
    seen = answer.concurrency
    out.print()
    replicas = "1 replica" if seen.replicas == 1 else f"{seen.replicas} replicas"
    busiest = f"the busiest replica had {seen.busiest_replica_peak:.0f} in flight at its peak"
    print_indented(out, f"Now and at the peak ({replicas} now; {busiest})", style="bold")
    out.print(terminal_table(CONCURRENCY_HEAD, concurrency_rows(seen)))
    print_indented(out, "Walls, as requests in flight in one replica", style="bold")
    out.print(terminal_table(WALL_HEAD, [_row(wall) for wall in answer.walls]))
    if answer.memory is not None:
        print_indented(out, "Memory of one replica", style="bold")
        for sentence in _memory_sentences(answer.memory):
            print_indented(out, sentence)
    show_list(out, "Autoscaler", list(_target_sentences(answer)))
    if answer.rule is not None:
        out.print()
        print_indented(out, "Recording rules for Prometheus", style="bold")
        print_plain(answer.rule.rstrip())
    show_list(out, "Warnings", answer.warnings)
    out.print()


def _headline(answer: HeadroomAnswer) -> str:
    peak = answer.concurrency.busiest_replica_peak
    if answer.growth is None:
        return f"at least {peak:.0f} in flight a replica, which were seen; no wall is known"
    nearest = answer.walls[0]
    low, x, high = answer.growth
    band = f"{_times(low)} or more" if high is None else f"90 %: {_times(low)} to {_times(high)}"
    unseen = [wall_name(wall.name) for wall in answer.walls if wall.x is None]
    unless = f", unless {' or '.join(unseen)} ends it earlier, which was not seen" if unseen else ""
    if x < 1:
        return f"beyond its {wall_name(nearest.name)} wall at the peak: it holds {_times(x)} as much ({band})"
    return f"{_times(x)} its peak until the {wall_name(nearest.name)} wall ({band}){unless}"


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 10 else f"{factor:.0f} times"


def _row(wall: SeenWall) -> list[str]:
    if wall.x is None:
        held = f"at least {wall.at_least:.1f}" if wall.at_least is not None else NONE
        return [wall_name(wall.name), held, "not seen", wall.how]
    return [wall_name(wall.name), f"{wall.x:.1f}", _interval(wall), wall.how]


def _interval(wall: SeenWall) -> str:
    if wall.interval is None:
        return NONE
    low, high = wall.interval
    return f"{low:.1f} or more" if high is None else f"{low:.1f} to {high:.1f}"


def _memory_sentences(memory: SeenMemory) -> Iterator[str]:
    low, middle, high = memory.tokens_by_lengths
    yield f"Pool: {memory.pool_tokens:,} tokens."
    if memory.tokens_per_request is not None:
        yield (f"A running request holds {memory.tokens_per_request:,.0f} tokens (KV usage over running).")
    least, likely, most = memory.users_by_lengths
    yield (
        f"By lengths alone it would hold {middle:,.0f} ({low:,.0f} to {high:,.0f}, depending on "
        "which answer each prompt had, which metrics do not tell), and the wall would be "
        f"{likely:.1f} ({least:.1f} to {most:.1f})."
    )
    peak = percent(memory.kv_usage_peak)
    preempted = "not known" if memory.preemptions is None else f"{memory.preemptions:,}"
    yield f"KV usage at the peak: {peak}. Preemptions: {preempted}."


def _target_sentences(answer: HeadroomAnswer) -> Iterator[str]:
    target = answer.target
    if target is None:
        yield "No target: an objective is not shown to be met at any load that was seen (above)."
        return
    why = f"the lower end of the {wall_name(target.basis)} wall"
    if target.basis == "seen":
        why = "the highest load that is shown to hold; a load test may show more"
    yield (
        f"Start another replica from {target.in_flight_per_replica} requests in flight a replica on (running "
        f"and waiting, mean of the replicas): {why}."
    )


def rule_text(answer: HeadroomAnswer, *, selector: str) -> str | None:
    """Returns recording rules as YAML; None without a target."""
    if answer.target is None:
        return None
    model = answer.model.replace("\\", r"\\").replace('"', r"\"")
    labels = f'model_name="{model}"' + (f",{selector}" if selector else "")
    lines = [
        "groups:",
        "- name: seatcount",
        "  rules:",
        "  # Requests in flight a replica.",
        "  - record: seatcount:requests_in_flight:mean",
        "    expr: >-",
        f"      avg by (model_name) (vllm:num_requests_running{{{labels}}}",
        f"      + vllm:num_requests_waiting{{{labels}}})",
        "  # Above 1, another replica should start.",
        "  - record: seatcount:requests_in_flight:target_ratio",
        "    expr: >-",
        f"      avg by (model_name) (vllm:num_requests_running{{{labels}}}",
        f"      + vllm:num_requests_waiting{{{labels}}}) / {answer.target.in_flight_per_replica}",
    ]
    return "\n".join(lines) + "\n"


def write_rule(rule: str, path: Path) -> None:
    """Writes the recording rules. Raises InputError if this is not possible."""
    write_files(path.parent, {path.name: rule})
