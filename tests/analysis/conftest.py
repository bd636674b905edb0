"""Virtual runs that several rooms of the analysis look at; each is played once a process."""

from pathlib import Path

import pytest

from analysis.answers.capacity import ModelAnswer
from testing.runs.answers import answer_for
from testing.runs.own import OWN_LEVELS, OwnRun
from testing.runs.virtual import Plan, small_engine, write_run, write_short_run


@pytest.fixture(scope="session")
def baseline(tmp_path_factory) -> Path:
    return write_short_run(tmp_path_factory.mktemp("a") / "before")


@pytest.fixture(scope="session")
def again(tmp_path_factory) -> Path:
    """The same deployment, measured once more."""
    return write_short_run(tmp_path_factory.mktemp("b") / "after", seed=1)


@pytest.fixture(scope="session")
def smaller(tmp_path_factory) -> Path:
    """A pool of 89 blocks instead of 127."""
    return write_short_run(tmp_path_factory.mktemp("c") / "smaller", seed=2, num_gpu_blocks=90)


@pytest.fixture(scope="session")
def memory_run(tmp_path_factory) -> Path:
    """128 blocks of 32 under prompts near 124 and outputs near 96: preempts one in a hundred at 17 users."""
    folder = tmp_path_factory.mktemp("reports") / "memory"
    write_run(folder, small_engine(), Plan(levels=OWN_LEVELS))
    return folder


@pytest.fixture(scope="session")
def memory_answer(memory_run) -> ModelAnswer:
    return answer_for(memory_run)


@pytest.fixture(scope="session")
def ours(tmp_path_factory) -> OwnRun:
    return OwnRun(tmp_path_factory.mktemp("reports") / "run")
