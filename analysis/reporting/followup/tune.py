"""Prints which flags would hold more users, as text or JSON. Knows no maths."""

from analysis.answers.tune import TriedChange, TuneAnswer, TunedConfiguration, TunedUsers, UsersInterval
from analysis.reporting.console import Output, print_indented, print_plain, show_list, terminal_table
from analysis.reporting.files import json_text
from analysis.reporting.numbers import NONE
from analysis.reporting.words import wall_name

TUNE_HEAD = ("flag", "now", "to", "users (90 %)", "difference (90 %)", "what limits then", "verdict")


def show_tuning(answer: TuneAnswer, *, as_json: bool) -> None:
    """Prints the answer of a tuning."""
    if as_json:
        print_plain(json_text(answer).rstrip())
        return
    out = Output()
    out.print()
    print_indented(out, tuning_title(answer), style="bold")
    engine = f"predicted for {answer.source}" if answer.predicted else f"fitted to {answer.source}"
    print_indented(out, f"Now {_users(answer.now)}: {wall_name(answer.now.wall)}, by the engine {engine}.")
    simulated = [one for one in answer.tried if one.verdict != "not simulated"]
    if simulated:
        out.print(terminal_table(TUNE_HEAD, [_row(one) for one in simulated]))
    if answer.recommended is not None:
        _show_recommended(out, answer.recommended)
    others = [f"{one.change.flag}: {one.reason}." for one in answer.tried if one.reason]
    show_list(out, "Not tried", [*others, *answer.left_out])
    show_list(out, "Warnings", answer.warnings)
    out.print()


def tuning_title(answer: TuneAnswer) -> str:
    """Says in one line whether a flag holds more users, and how many."""
    found = answer.recommended
    if found is None:
        return f"{answer.model}: no flag surely gives more users; the limit is {wall_name(answer.now.wall)}"
    flags = ", ".join(f"{one.flag} {one.to}" for one in found.changes)
    return f"{answer.model}: {_difference(found.difference, found.difference_interval)} users with {flags}"


def _show_recommended(out: Output, found: TunedConfiguration) -> None:
    together = "Together they hold" if len(found.changes) > 1 else "It holds"
    print_indented(out, f"{together} {_users(found.users)}; what limits then: {wall_name(found.users.wall)}.")
    for title, commands in (
        ("Start it", [found.serve_command]),
        ("Prove it", [found.load_test_command, found.compare_command]),
    ):
        out.print()
        print_indented(out, title, style="bold")
        for command in commands:
            if command is not None:
                print_indented(out, f"  {command}")


def _row(one: TriedChange) -> list[str]:
    change = one.change
    if one.users is None or one.difference is None:
        return [change.flag, change.now, change.to, NONE, NONE, NONE, one.verdict]
    difference, limits = _difference(one.difference, one.difference_interval), wall_name(one.users.wall)
    return [change.flag, change.now, change.to, _users(one.users), difference, limits, one.verdict]


def _users(found: TunedUsers) -> str:
    if found.x is None:
        return "no limit found"
    return (
        f"{found.x:.1f} users" if found.interval is None else f"{found.x:.1f} users ({_ends(found.interval)})"
    )


def _ends(interval: UsersInterval) -> str:
    low, high = interval
    return f"{low:.1f} or more" if high is None else f"{low:.1f} to {high:.1f}"


def _difference(value: float, interval: UsersInterval | None) -> str:
    if interval is None:
        return f"{value:+.1f}"
    low, high = interval
    return (
        f"{value:+.1f} ({low:+.1f} or more)" if high is None else f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
    )
