"""`python -m analysis.search FOLDER` advises a running load test, as its child process.

Each line on stdin is a `SearchState` or a `LevelQuestion`. For each, the process judges the run so far and
writes a `SearchAdvice` or a `LevelVerdict` as a line on stdout. The process ends when stdin ends.
`loadtest.run.advisor` starts it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from analysis.capacity.judgement import Judgement, judge
from analysis.cli import stored_slo
from analysis.reading.runs import find_runs, read_run
from analysis.search.advice import advise
from analysis.search.verdict import verdict_on
from loadtest.record import LevelQuestion, LevelVerdict, SearchAdvice, SearchState


def main(argv: Sequence[str]) -> int:
    """Answers each line on stdin until stdin ends, and returns the exit code.

    If this process fails, the load test shows the last line of its traceback.
    """
    (folder,) = map(Path, argv)
    for line in sys.stdin.buffer:
        question = msgspec.json.decode(line, type=SearchState | LevelQuestion)
        answer = (
            _verdict(folder, question) if isinstance(question, LevelQuestion) else _advice(folder, question)
        )
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _verdict(folder: Path, question: LevelQuestion) -> LevelVerdict:
    (found,) = find_runs(folder)
    run = read_run(found)
    return verdict_on(run, question, slo=stored_slo(run.info))


def _advice(folder: Path, state: SearchState) -> SearchAdvice:
    judgement = judgement_of(folder, quick=state.left_s > 0)  # the last one is the final answer
    return advise(judgement, holding=state.holding, held_s=state.held_s, left_s=state.left_s)


def judgement_of(folder: Path, *, quick: bool) -> Judgement:
    """Judges the run in progress by the objectives in its settings. quick: less exact but faster.

    Raises InputError when the folder holds no run that can be read.
    """
    (found,) = find_runs(folder)
    run = read_run(found)
    return judge([run], slo=stored_slo(run.info), quick=quick)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
