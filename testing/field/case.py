"""What a case is, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a case should give, what ours gave, and whether that is right."""

    right: str
    ours: str
    ok: bool


CaseFunction = Callable[[Path], Judged]


@dataclass(frozen=True, kw_only=True)
class FieldCase:
    """One thing that a real installation does. `judge` runs it in an empty folder."""

    name: str
    title: str
    judge: CaseFunction
    tested: bool
    """Whether it is a test; otherwise only the benchmark runs it."""


def case(title: str, *, tested: bool = True) -> Callable[[CaseFunction], FieldCase]:
    """Makes a case of a function: the function's name is the case's name.

    A case that is long, and much like another, need not be tested.
    """

    def make(judge: CaseFunction) -> FieldCase:
        return FieldCase(name=judge.__name__, title=title, judge=judge, tested=tested)

    return make


def judged(right: str, ours: str, *problems: str | bool) -> Judged:
    """Returns a judgement that is right if there is no problem. False and an empty text are no problem."""
    found = [str(problem) for problem in problems if problem]
    return Judged(right=right, ours="; ".join([ours, *found]), ok=not found)


def unless(true: bool, problem: str) -> str:
    """Returns the problem, or nothing if the condition is true."""
    return "" if true else problem
