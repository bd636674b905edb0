"""Compares the twin with a real vLLM (CPU build) under the same traffic, and predicts what-ifs first.

Step times are calibrated on three of the conditions; the others are held out. Every condition is run twice.
The difference of the two runs is the floor: an error below it means nothing. The machine's speed changes from
minute to minute, so times are also compared with a second twin, whose step times are all scaled by one factor
to match the run's median TPOT. Runs are kept in build/fidelity and used again by the next call.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from analysis.reading.runs import Run
from analysis.virtual.service import Service
from benchmarks.proofs.fidelity.conditions import (
    CONDITIONS,
    OBJECTIVES,
    RUNS_FOLDER,
    SHORT,
    WHAT_IFS,
    Condition,
)
from benchmarks.proofs.fidelity.figures import (
    SUMMARY_ROWS,
    closed_loop_evidence,
    closed_loop_figures,
    histogram_distance,
    open_loop_figures,
    twin_figures,
    usage_errors,
)
from benchmarks.proofs.fidelity.lab import Lab
from benchmarks.proofs.fidelity.replicas import measure_two_replicas
from benchmarks.proofs.fidelity.tables import error_text, print_summary, print_table
from benchmarks.proofs.fidelity.twins import (
    at_speed_of,
    calibrated,
    people_of,
    play_level,
    terms_text,
    twin_of_closed_loop,
    twin_of_open_loop,
    with_flags,
    with_half_lengths,
)


def main() -> None:
    """Prints the tables of docs/twin.md. Takes nearly half an hour."""
    RUNS_FOLDER.mkdir(parents=True, exist_ok=True)
    lab = Lab(RUNS_FOLDER.resolve())
    runs: dict[str, list[Run]] = {}
    for server in dict.fromkeys(condition.server for condition in CONDITIONS):
        runs |= lab.twice([condition for condition in CONDITIONS if condition.server == server])
    calibration = calibrated([runs[one.name] for one in CONDITIONS if one.fitted])
    print(terms_text(calibration), flush=True)
    summary = [_print_condition(one, runs[one.name], calibration.service, lab) for one in CONDITIONS]
    print_summary(summary)
    _what_ifs(lab, replace(calibration.service, chatting=people_of(runs["knee"])))
    measure_two_replicas(lab, calibration)


def _print_condition(condition: Condition, runs: Sequence[Run], fitted: Service, lab: Lab) -> list[str]:
    service = with_flags(fitted, condition.server)
    if condition.trace is not None:
        blocks = lab.due(condition)
        real = [open_loop_figures(run) for run in runs]
        sides = [twin_of_open_loop(service, run, blocks) for run in runs]
        scaled = [
            twin_of_open_loop(at_speed_of(service, figures, side), run, blocks)
            for figures, side, run in zip(real, sides, runs, strict=True)
        ]
        extra = usage_errors(runs, scaled)
    else:
        found = [closed_loop_evidence(run) for run in runs]
        real = [closed_loop_figures(run, level) for run, (_, level) in zip(runs, found, strict=True)]
        sides = [twin_of_closed_loop(service, *one, condition.users) for one in found]
        scaled = [
            twin_of_closed_loop(at_speed_of(service, figures, side), *one, condition.users)
            for figures, side, one in zip(real, sides, found, strict=True)
        ]
        extra = histogram_distance(found[0][0].runs[0], found[0][1], scaled[0])
    print(f"\n{condition.name} ({'fitted' if condition.fitted else 'held out'})\n")
    twin, at_speed = (
        [twin_figures(played.figures(OBJECTIVES)) for played in plays] for plays in (sides, scaled)
    )
    print_table(real, twin, at_speed)
    print(f"\n{extra}", flush=True)
    words = [error_text(key, scale, real, at_speed) for _, key, scale in SUMMARY_ROWS]
    return [condition.name, "fitted" if condition.fitted else "held out", *words]


def _what_ifs(lab: Lab, fitted: Service) -> None:
    print("\nwhat if (predicted before the run)")
    for name, server, load, users in WHAT_IFS:
        service = with_flags(fitted, server)
        if load is SHORT:
            service = with_half_lengths(service)
        side = play_level(service, users)
        with lab.server(server, needed=not lab.kept(f"{name} 6")) as url:
            runs = [lab.measure(url, f"{name} {seed}", lab.closed(users, load, seed)) for seed in (5, 6)]
        real = [closed_loop_figures(run, closed_loop_evidence(run)[1]) for run in runs]
        scaled = [
            twin_figures(play_level(at_speed_of(service, one, side), users).figures(OBJECTIVES))
            for one in real
        ]
        print(f"\n{name}, {users} users\n")
        print_table(real, [twin_figures(side.figures(OBJECTIVES))] * 2, scaled)
        sys.stdout.flush()
