"""Builds the answer of `python -m analysis.tune`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from analysis.answers.tune import TuneAnswer, TunedConfiguration, TunedUsers
from analysis.answers.twin import Prediction
from analysis.cli import RefusedError
from analysis.reading.pooling import choose_runs
from analysis.reading.runs import find_runs
from analysis.reporting.console import ProgressBar
from analysis.tune.commands import compare_command, load_test_command, run_notes, serve_command
from analysis.tune.flags import flag_change
from analysis.tune.limits import Workbench, users_of
from analysis.tune.recommend import MAX_ROUNDS, FlagSearch, search_flags, total_gain
from analysis.twin.model_error import ModelErrors, stall_warnings
from analysis.twin.predictions import check_left_out
from analysis.twin.source import FitEffort, FittedTwin, twin_of_run
from analysis.virtual.processes import for_each
from loadtest.record import RunInfo

QUICK_FIT = FitEffort(overhead_requests=200, most_left_out=4, each=for_each)
"""Less than for the twin's own predictions, to answer in seconds: the median TTFT of 200 requests is known to
about 3 %, far better than the model's error."""


def tune_answer(options: argparse.Namespace, bar: ProgressBar) -> TuneAnswer:
    """Fits the twin, tries the flags, and recommends those that surely hold more users.

    Raises InputError, RefusedError, CalibrationError.
    """
    twin = twin_of_run(options, bar, effort=QUICK_FIT)
    info = choose_runs(find_runs(options.run), None)[0][0][-1].info
    bench = Workbench(twin=twin, errors=_model_errors(twin, options.router), router=options.router)
    advance = bar.task("trying flags", total=MAX_ROUNDS)
    found = search_flags(bench, info, kept=options.keep, advance=advance)
    if found is None:
        raise RefusedError("Not even one user fits within the objectives, by the engine fitted to this run.")
    recommended = _recommended(options, twin, info, found)
    return TuneAnswer(
        source=twin.source,
        model=info.model,
        slo=twin.slo,
        now=users_of(found.now.limit, found.now.drawn),
        tried=list(found.tried),
        recommended=recommended,
        left_out=_left_out(twin),
        warnings=_warnings(options, twin, info, found),
    )


def _model_errors(twin: FittedTwin, router: str) -> ModelErrors:
    """Returns the errors of the twin at the levels that were left out in turn."""

    def check(position: int) -> list[Prediction]:
        one = replace(twin, left_out=[twin.left_out[position]])
        return check_left_out(one, router, advance=lambda _: None)

    return ModelErrors.of([one for found in for_each(check, range(len(twin.left_out))) for one in found])


def _recommended(
    options: argparse.Namespace, twin: FittedTwin, info: RunInfo, found: FlagSearch
) -> TunedConfiguration | None:
    """Returns the best combination with its commands; None if no flag surely gives more."""
    if found.best is found.now:
        return None
    setting = found.best.setting
    users: TunedUsers = users_of(found.best.limit, found.best.drawn)
    assert users.interval is not None
    difference, interval = total_gain(found)
    stated = {
        name: getattr(options, f"measured_{name}") for name in ("max_num_seqs", "max_num_batched_tokens")
    }
    return TunedConfiguration(
        changes=[flag_change(name, value, twin, info) for name, value in setting.items()],
        users=users,
        difference=difference,
        difference_interval=interval,
        serve_command=serve_command(info, setting, stated=stated),
        load_test_command=load_test_command(
            info.settings,
            scenario=info.scenario,
            host=info.host,
            now_x=found.now.x,
            users=users.interval,
        ),
        compare_command=compare_command(options.run),
    )


def _left_out(twin: FittedTwin) -> list[str]:
    """Says which flags are not tried at all, and why."""
    turns = [turn for turns in twin.fit.service.chatting.conversations for turn in turns]
    longest = max(prompt + output for prompt, output in turns)
    return [
        "--max-model-len: the pool does not grow when it is lowered. Less than the longest request, "
        f"{longest:,} tokens, would cut requests.",
        "--tensor-parallel-size against replicas: one run does not tell how steps and pool change with more "
        "GPUs. analysis.sizing estimates it.",
    ]


def _warnings(options: argparse.Namespace, twin: FittedTwin, info: RunInfo, found: FlagSearch) -> list[str]:
    engine, warnings = twin.fit.service.engine, []
    if options.measured_max_num_batched_tokens is None:
        warnings.append(
            f"max_num_batched_tokens is taken to be {engine.max_num_batched_tokens}, because no server "
            "exports it: state it with --measured-max-num-batched-tokens."
        )
    if options.measured_max_num_seqs is None and info.server.max_num_seqs is None:
        warnings.append(
            f"max_num_seqs is taken to be {engine.max_num_seqs}, because the run does not say it: state it "
            "with --measured-max-num-seqs."
        )
    if not twin.left_out:
        warnings.append(
            "No level could be predicted by a fit to the others: the intervals hold only the errors that the "
            "twin had on another server (docs/twin.md)."
        )
    warnings += stall_warnings(twin.slo, budget_known=True)  # the budget is named above
    if info.server.simulated is not None:
        warnings.append("The run was against Seatcount's embedded server, not hardware.")
    changed: Sequence[str] = list(found.best.setting)
    return [*warnings, *(run_notes(changed) if changed else [])]
