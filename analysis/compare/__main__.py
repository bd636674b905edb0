"""Two models, or two versions of a server, side by side: `python -m analysis.compare RUN RUN`; with `--gate`,
a verdict on whether the second got worse."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.answers.compare import Comparison, Difference, Different, FigureName, Row, Side
from analysis.capacity.headline import CONFIDENCE
from analysis.cli import RefusedError, add_slo_flags, slo_of
from analysis.compare.gate import TOLERANCE, gate_of
from analysis.compare.sides import (
    Contrast,
    Deployment,
    at_level,
    capacity_of,
    common_levels,
    deployment_of,
    kv_tokens,
    memory_users,
    of_estimates,
    of_facts,
    scaled,
    vram_of,
)
from analysis.reading.pooling import WORKLOAD_SETTINGS, chosen_of, comparable, read_group
from analysis.reading.runs import RunFolder, find_runs, run_bytes
from analysis.reporting import capacity as report
from analysis.reporting import compare as compare_report
from analysis.statistics.ratios import Quantity, ratio_bounds
from analysis.statistics.samples import finite_or_none
from analysis.walls.placed import RESAMPLES
from loadtest.errors import InputError
from loadtest.record import RunInfo, Slo
from loadtest.simulator.presets import PRESETS

CHANCE = 0.05
"""Probability that the table calls any figure of two equal deployments different, at most."""
SAME_FACT = 0.001
"""Facts nearer than this are equal: memory comes in whole blocks."""
AT_LEVELS: tuple[FigureName, ...] = ("ttft_p50_s", "ttft_p95_s", "decode_tok_s", "tpot_p95_s", "output_tok_s")
WORKLOAD = ("scenario", *WORKLOAD_SETTINGS)
SAME = "Both are the same run: a comparison needs two that were made apart."


# What may be compared.


def mismatches(a: RunInfo, b: RunInfo) -> list[str]:
    """Why two runs must not be compared, one `name (a against b)` each; empty when they may be."""
    if bool(a.arrivals) != bool(b.arrivals):
        return ["how requests came (an open loop against levels of users)"]
    ours, theirs = comparable(a), comparable(b)
    found = [
        f"{name} ({ours[name]} against {theirs[name]})" for name in WORKLOAD if ours[name] != theirs[name]
    ]
    gpus = [_gpu_of(info) for info in (a, b)]
    if None not in gpus and gpus[0] != gpus[1]:
        found.append(f"GPU ({gpus[0]} against {gpus[1]})")
    return found


def _gpu_of(info: RunInfo) -> str | None:
    """Of an embedded server, the one that it simulates."""
    if info.server.simulated is not None:
        preset = PRESETS.get(info.server.simulated)
        return f"simulated {preset.gpu.name if preset else 'GPU'}"
    if info.gpu is None or info.gpu.name is None:
        return None
    return f"{info.gpu.count} x {info.gpu.name}"


def _differs(a: RunInfo, b: RunInfo) -> list[Difference]:
    """What differs and may: model, server, its flags; and how the load was stepped."""
    ours, theirs = (_may_differ(info) for info in (a, b))
    names = [name for name in ours if ours[name] != theirs[name]]
    return [Difference(name=name, a=ours[name], b=theirs[name]) for name in names]


def _may_differ(info: RunInfo) -> dict[str, str]:
    names = {
        name: value for name, value in comparable(info).items() if name not in WORKLOAD and name != "gpu"
    }
    stepped = {name: str(info.settings.get(name)) for name in ("levels", "level_s", "seed")}
    return {name: value.strip('"') for name, value in {**names, **stepped}.items()}


# The table.


def compare(a: Deployment, b: Deployment) -> list[Row]:
    """The table. Latencies stand at the lowest common level and at the highest that both deployments hold."""
    contrasts = [
        of_estimates("max_users", a, b, capacity_of),
        of_estimates("memory_users", a, b, memory_users),
    ]
    for users in headline_levels(a, b):
        contrasts += [at_level(figure, a, b, users) for figure in AT_LEVELS]
    contrasts += _memory_contrasts(a, b)
    shown = [one for one in contrasts if one.a is not None or one.b is not None]
    tests = sum(one.bounds is not None for one in shown)
    return [_row(one, a, b, tests=max(tests, 1)) for one in shown]


def headline_levels(a: Deployment, b: Deployment) -> list[int]:
    """The lowest common level, and the highest that both hold; fewer where there are fewer."""
    common = common_levels(a, b)
    held = [users for users in common if all(users <= (side.answer.max_users or 0) for side in (a, b))]
    return sorted({*common[:1], *held[-1:]})


def _memory_contrasts(a: Deployment, b: Deployment) -> list[Contrast]:
    per = [side.answer.memory.bytes_per_token for side in (a, b)]
    tokens = of_estimates("kv_tokens_per_user", a, b, kv_tokens)
    ours, theirs = scaled(tokens.a, per[0]), scaled(tokens.b, per[1])
    vram = [vram_of(side) for side in (a, b)]
    predicted = any(one.predicted for one in vram)
    return [
        tokens,
        Contrast(
            figure="kv_bytes_per_user",
            a=ours,
            b=theirs,
            bounds=ratio_bounds(ours, theirs) if ours and theirs else None,
        ),
        of_facts("kv_bytes_per_token", per),
        of_facts("kv_pool_tokens", [side.answer.memory.pool_tokens for side in (a, b)]),
        replace(of_facts("vram_no_load_bytes", [one.no_load for one in vram]), predicted=predicted),
        replace(of_facts("vram_at_peak_bytes", [one.at_peak for one in vram]), predicted=predicted),
        replace(of_facts("vram_held_bytes", [one.held for one in vram]), predicted=predicted),
        of_facts("max_model_len", [side.info.server.max_model_len for side in (a, b)]),
    ]


def _row(one: Contrast, a: Deployment, b: Deployment, *, tests: int) -> Row:
    open_ended = one.figure == "max_users"
    sides = [
        _side(quantity, at_least=open_ended and side.answer.at_least, predicted=one.predicted)
        for quantity, side in ((one.a, a), (one.b, b))
    ]
    both = one.a is not None and one.b is not None and not any(side.at_least for side in sides)
    return Row(
        figure=one.figure,
        users=one.users,
        a=sides[0],
        b=sides[1],
        ratio=one.b.value / one.a.value if both and one.a and one.b else None,
        ratio_interval=_ends(one.bounds((1.0 - CONFIDENCE) / 2)) if one.bounds else None,
        different=_different(one, tests),
    )


def _side(quantity: Quantity | None, *, at_least: bool, predicted: bool) -> Side:
    if quantity is None:
        return Side()
    low, high = quantity.bounds((1.0 - CONFIDENCE) / 2)
    interval = (low, finite_or_none(high)) if low != high else None
    return Side(value=quantity.value, interval=interval, at_least=at_least, predicted=predicted)


def _ends(bounds: tuple[float, float]) -> tuple[float | None, float | None]:
    """Open ends are null."""
    low, high = bounds
    return low if low > 0 else None, finite_or_none(high)


def _different(one: Contrast, tests: int) -> Different | None:
    """Bonferroni's correction over the rows: a dozen of them have chance differences at 10 % each."""
    if one.a is None or one.b is None:
        return None
    if one.bounds is None:
        return "equal" if abs(one.b.value / one.a.value - 1.0) < SAME_FACT else "yes"
    if _excludes_one(one.bounds(CHANCE / 2 / tests)):
        return "yes"
    return "perhaps" if _excludes_one(one.bounds((1.0 - CONFIDENCE) / 2)) else "not_seen"


def _excludes_one(ends: tuple[float, float]) -> bool:
    return ends[0] > 1.0 or ends[1] < 1.0


# The command.


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.compare`. Returns the exit code: 0 compared (a gate: not worse), 2 unreadable, 3
    refused, 4 the gate failed."""
    options = _parser().parse_args(argv)
    try:
        found = compared(options)
        if options.output is not None:
            compare_report.write(found, folder=options.output)
    except InputError as problem:
        report.complain(str(problem))
        return 2
    except RefusedError as refusal:
        report.complain(str(refusal))
        return 3
    except KeyboardInterrupt:
        return 130
    compare_report.show(found, form=options.format, folder=options.output)
    return {"ok": 0, "unclear": 3, "worse": 4}[found.gate.verdict] if found.gate else 0


def compared(options: argparse.Namespace) -> Comparison:
    """Reads both sides and compares them. Raises InputError and RefusedError."""
    groups, notes = [], []
    for folder in options.runs:
        group, warnings = _one_model(folder)
        groups.append(group)
        notes += warnings
    a, b = (group[-1].info for group in groups)
    _refuse(groups, a, b)
    slo = _common_slo(options, a, b)
    with report.progress() as bar:
        sides = [
            deployment_of(
                read_group(group, bar),
                name=name,
                slo=slo,
                on_step=bar.task("placing the walls", total=RESAMPLES),
            )
            for group, name in zip(groups, _names(groups, options), strict=True)
        ]
    return comparison_of(
        sides[0], sides[1], slo=slo, gate=options.gate, tolerance=options.tolerance, notes=notes
    )


def comparison_of(
    a: Deployment,
    b: Deployment,
    *,
    slo: Slo,
    gate: bool = False,
    tolerance: float = TOLERANCE,
    notes: Sequence[str] = (),
) -> Comparison:
    """Raises RefusedError where the two have nothing that can be compared."""
    common = common_levels(a, b)
    if not common and (a.refused or b.refused):
        why = " ".join((a if a.refused else b).judgement.reasons)
        raise RefusedError(
            f"These runs have no level that is trusted in both, and no capacity to compare: {why}"
        )
    return Comparison(
        generated_unix_s=time.time(),
        confidence=CONFIDENCE,
        slo=slo,
        names=(a.name, b.name),
        answers=(a.answer, b.answer),
        common_levels=common,
        rows=compare(a, b),
        differs=_differs(a.info, b.info),
        gate=gate_of(a, b, tolerance=tolerance) if gate else None,
        warnings=[*notes, *_warnings(a, b, common)],
    )


def _warnings(a: Deployment, b: Deployment, common: Sequence[int]) -> list[str]:
    found = []
    if not common:
        levels = " and ".join(
            ", ".join(map(str, side.judgement.evidence.trusted)) or "none" for side in (a, b)
        )
        found.append(
            f"No level is trusted in both runs (users: {levels}): latency and throughput are not compared. "
            "Run both at the same --levels."
        )
    if None in (_gpu_of(a.info), _gpu_of(b.info)):
        found.append(
            "Whether both ran on the same kind of GPU is not known: a run does not say which it was."
        )
    for side in (a, b):
        found += [f"{side.name}: {warning}" for warning in side.answer.warnings]
        found += [f"{side.name}: {reason}" for reason in side.judgement.reasons]
    return found


def _one_model(folder: Path) -> tuple[list[RunFolder], list[str]]:
    """The newest runs there that may be pooled, as `analysis.capacity` chooses them, and what it left out."""
    groups, notes = chosen_of(find_runs(folder), None)
    if len(groups) > 1:
        names = ", ".join(group[0].info.model for group in groups)
        raise InputError(f"{folder} holds runs of several models ({names}): name the run folder of one.")
    return groups[0], [note for found in notes.values() for note in found]


def _refuse(groups: Sequence[Sequence[RunFolder]], a: RunInfo, b: RunInfo) -> None:
    """Raises RefusedError, or InputError where both sides share a run."""
    first, second = ({run.info.run_id: run_bytes(run) for run in group} for group in groups)
    if first.items() & second.items():
        raise InputError(SAME)
    found = mismatches(a, b)
    if found:
        raise RefusedError(
            f"These runs must not be compared, because they differ in {'; '.join(found)}. Run both with the "
            "same workload on the same GPU."
        )
    if a.arrivals and b.arrivals:
        raise RefusedError(
            "Both are open loops: they have no users, so there is no equal load to compare at. Run levels."
        )


def _common_slo(options: argparse.Namespace, a: RunInfo, b: RunInfo) -> Slo:
    """Raises RefusedError where the runs were made with different objectives and no flag decides."""
    ours, theirs = slo_of(options, a), slo_of(options, b)
    differ = [name for name in Slo.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)]
    if differ:
        flags = " and ".join(f"--slo-{name.replace('_', '-')}" for name in differ)
        raise RefusedError(
            f"These runs were made with different objectives: say which to judge both by, with {flags}."
        )
    return ours


def _names(groups: Sequence[Sequence[RunFolder]], options: argparse.Namespace) -> tuple[str, str]:
    """What tells the two apart: their models, else their servers' versions, else their folders."""
    a, b = (group[-1].info for group in groups)
    if options.gate:
        return "baseline", "run"
    if a.model != b.model:
        return a.model, b.model
    if (a.server.engine, a.server.version) != (b.server.engine, b.server.version):
        return _version(a), _version(b)
    first, second = (folder.resolve().name for folder in options.runs)
    return (first, second) if first != second else (str(options.runs[0]), str(options.runs[1]))


def _version(info: RunInfo) -> str:
    return " ".join(filter(None, [info.server.engine, info.server.version])) or "unknown server"


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Two models, or two versions of a server, side by side: how many users each holds, how "
        "fast and at what memory, and which differences are real. Both runs must have the same workload and "
        "GPU.",
        epilog="Exit codes: 0 compared, and with --gate: not worse; 2 wrong usage or unreadable input; 3 "
        "refused, or the data cannot support a verdict; 4 the gate failed.",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs=2, metavar="RUN", help="a run folder, or a folder of runs of one model")
    add("--gate", action="store_true", help="has the second run got worse than the first, its baseline?")
    add(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        metavar="F",
        help="with --gate: let pass what is worse by less than this share (default %(default)s)",
    )
    add(
        "--format", choices=compare_report.FORMS, default="text", help="what is printed (default %(default)s)"
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="also write compare.html, compare.md and compare.json there",
    )
    add_slo_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
