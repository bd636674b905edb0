"""What a case is, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a case should give, what ours gave, and whether that is right."""

    right: str
    ours: str
    ok: bool


CaseFunction = Callable[[Path], Judged]


class Runs(Enum):
    """Where a case runs besides the benchmark, which runs all of them."""

    IN_CHECK = "make check: short, or one that everything else depends on"
    IN_TEST = "make test: about half a minute or more, or it needs a real gateway"
    IN_BENCHMARK = "only the benchmark: long, and much like a case that is tested"


@dataclass(frozen=True, kw_only=True)
class FieldCase:
    """One thing that a real installation does. `judge` runs it in an empty folder."""

    name: str
    title: str
    judge: CaseFunction
    runs: Runs


def case(title: str, *, runs: Runs = Runs.IN_CHECK) -> Callable[[CaseFunction], FieldCase]:
    """Makes a case of a function: the function's name is the case's name."""

    def make(judge: CaseFunction) -> FieldCase:
        return FieldCase(name=judge.__name__, title=title, judge=judge, runs=runs)

    return make


def judged(right: str, ours: str, *problems: str | bool) -> Judged:
    """Returns a judgement that is right if there is no problem. False and an empty text are no problem."""
    found = [str(problem) for problem in problems if problem]
    return Judged(right=right, ours="; ".join([ours, *found]), ok=not found)


def unless(true: bool, problem: str) -> str:
    """Returns the problem, or nothing if the condition is true."""
    return "" if true else problem
