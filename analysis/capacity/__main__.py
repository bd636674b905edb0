"""The command `python -m analysis.capacity reports/`: how many users can this deployment hold?"""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from analysis.answers.capacity import (
    Answer,
)
from analysis.capacity.answer import recommend
from analysis.capacity.headline import CONFIDENCE
from analysis.cli import ExitCode, add_slo_flags, end_with_sentence, fraction, positive_integer, share, slo_of
from analysis.evidence.evidence import VLLM_BLOCK_SIZE
from analysis.reading.other_tools.results import read_results
from analysis.reading.pooling import choose_runs, read_group
from analysis.reading.runs import FoundRun, Run, find_runs, has_runs
from analysis.reporting import capacity as report
from analysis.reporting.console import progress
from analysis.walls.placed import RESAMPLES
from loadtest.errors import InputError
from loadtest.model.architectures import parse_config
from loadtest.model.kv_cache import kv_bytes_per_token


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code: 0 answered, 2 unreadable, 3 refused, 130 interrupted."""
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    if options.headcount is not None and options.active is None:
        raise InputError("--headcount needs --active, the share of these people who are active at the peak.")
    answer = analyse(options)
    report.show(answer, folder=_folder(options))
    refused = all(model.refused for model in answer.models)
    refused = refused or any(model.incomplete for model in answer.models)
    return ExitCode.REFUSED if refused else ExitCode.ANSWERED


def analyse(options: argparse.Namespace) -> Answer:
    """Reads the runs, computes the answer, writes the reports into the named folder and returns the answer.

    Raises InputError if the runs cannot be read.
    """
    per_token = _bytes_from_config(options.config)
    groups, left_out = choose_runs(_found(options), options.run)
    models = []
    slo = slo_of(options, groups[-1][-1].info)
    with progress() as bar:
        for group in groups:
            runs = [_with_stated_server(run, options) for run in read_group(group, bar.task)]
            model = recommend(
                runs,
                slo=slo,
                confidence=options.confidence,
                bytes_per_token=per_token,
                headcount=options.headcount,
                active=options.active,
                busiest_hour=options.busiest_hour,
                on_step=bar.task("placing the walls", total=RESAMPLES),
            )
            not_pooled = left_out.get(model.model, [])
            models.append(msgspec.structs.replace(model, warnings=[*not_pooled, *model.warnings]))
    answer = Answer(generated_unix_s=time.time(), confidence=options.confidence, slo=slo, models=models)
    report.write(answer, folder=_folder(options))
    return answer


def _folder(options: argparse.Namespace) -> Path:
    """Returns the folder into which the reports are written."""
    path: Path = options.path
    return path.parent if path.is_file() else path


def _found(options: argparse.Namespace) -> Sequence[FoundRun]:
    """Returns the run folders at the given path, or else the results of other load generators there.

    Raises InputError if there is neither, if results cannot be read, or if --server-metrics is given for run
    folders.
    """
    if options.path.is_file() or (options.path.is_dir() and not has_runs(options.path)):
        return read_results(options.path, server_metrics=options.server_metrics)
    if options.server_metrics:
        raise InputError(f"--server-metrics goes with the results of other tools: {options.path} holds runs.")
    return find_runs(options.path)


def _with_stated_server(run: Run, options: argparse.Namespace) -> Run:
    """Returns the run with what the user stated of the server on the command line: pool and slots."""
    server = run.info.server
    if options.kv_cache_tokens is not None:
        block_size = options.block_size or server.block_size or VLLM_BLOCK_SIZE
        server = msgspec.structs.replace(
            server,
            kv_cache_tokens=options.kv_cache_tokens,
            block_size=block_size,
            num_gpu_blocks=options.kv_cache_tokens // block_size,
        )
    if options.max_num_seqs is not None:
        server = msgspec.structs.replace(server, max_num_seqs=options.max_num_seqs)
    return replace(run, info=msgspec.structs.replace(run.info, server=server))


def _bytes_from_config(path: Path | None) -> int | None:
    if path is None:
        return None
    try:
        shape = parse_config(msgspec.json.decode(path.read_bytes(), type=dict[str, object]))
        found = kv_bytes_per_token(shape)
    except (OSError, msgspec.DecodeError, ValueError) as problem:
        raise InputError(f"--config {path} does not tell the KV bytes of a token ({problem}).") from None
    if found is None:
        raise InputError(f"--config {path} has no single figure of KV bytes a token (windows): leave it out.")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.capacity",
        description="How many users can this deployment hold? Reads one run folder, or a folder of run "
        "folders, or the results of guidellm, aiperf or vllm bench serve, and answers with an interval and "
        "the wall that binds. Writes capacity.json, report.html, report.md and figures into that folder.",
        epilog="Exit codes: 0 answered, 2 wrong usage or unreadable input, 3 refused because the data cannot "
        "support an answer, or answered from a run that lost rows or whose server was dead. An objective "
        "that is not given is the one that the run was made with.",
    )
    add = parser.add_argument
    add(
        "path",
        type=Path,
        metavar="PATH",
        help="a run folder, or the folder that holds them (reports/); or a result file of another tool, or "
        "the folder that holds a sweep of them (docs/importing.md)",
    )
    add("--run", action="append", metavar="ID", help="only this run; repeat it to pool several")
    add("--config", type=Path, metavar="FILE", help="the model's config.json: turns KV tokens into GiB")
    add(
        "--server-metrics",
        type=Path,
        metavar="FILE",
        help="of another tool's run: Prometheus' query_range as JSON, or successive scrapes as text "
        "(default: server_metrics.json or .txt beside the results)",
    )
    add(
        "--kv-cache-tokens",
        type=positive_integer,
        metavar="N",
        help='the pool, where /metrics was not read: the N of "GPU KV cache size: N tokens" in vLLM\'s log',
    )
    add(
        "--block-size",
        type=positive_integer,
        metavar="B",
        help=f"tokens a block, with --kv-cache-tokens (default: what /metrics said, else {VLLM_BLOCK_SIZE})",
    )
    add(
        "--max-num-seqs",
        type=positive_integer,
        metavar="N",
        help="the most requests that one engine runs at once (vLLM's flag of this name), where the server "
        "does not state it: without it, a queue that looks like this limit is only suspected",
    )
    add(
        "--confidence",
        type=fraction,
        default=CONFIDENCE,
        help="how often the interval should cover the truth (default %(default)s)",
    )
    _add_people_flags(parser)
    add_slo_flags(parser)
    return parser


def _add_people_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "people", "For how many people is that, if not all ask at once?"
    ).add_argument
    add(
        "--active",
        type=share,
        metavar="F",
        help="the share of people who are active at the peak, such as 0.2: says for how many people that is",
    )
    add(
        "--headcount",
        type=positive_integer,
        metavar="N",
        help="people who may use the service, with --active: says how many such deployments they need",
    )
    add(
        "--busiest-hour",
        type=positive_integer,
        metavar="REQUESTS",
        help="requests in the busiest hour of a day: says how many users at once they are, and if they fit",
    )


if __name__ == "__main__":
    sys.exit(main())
