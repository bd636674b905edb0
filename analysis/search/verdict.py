"""Says whether a level that has ended is trusted, and whether it should be held again.

Knows no walls: a verdict needs only the measurements of the level itself.
"""

from analysis.evidence.evidence import gather_evidence
from analysis.levels.level import Level
from analysis.notes import (
    EngineRestarted,
    EnginesChanged,
    GeneratorBusy,
    GeneratorFroze,
    GeneratorLate,
    Note,
    NotSteady,
)
from analysis.reading.runs import Run
from analysis.reporting.words import sentences
from loadtest.record import LevelQuestion, LevelVerdict, Slo

PASSING_DOUBTS: tuple[type[Note], ...] = (
    EngineRestarted,
    EnginesChanged,
    NotSteady,
    GeneratorLate,
    GeneratorFroze,
    GeneratorBusy,
)
"""Doubts whose cause may have passed when the level is held again."""


def verdict_on(run: Run, question: LevelQuestion, *, slo: Slo) -> LevelVerdict:
    """Returns whether the level that began at `question.start_unix_s` is trusted.

    A level with doubts is worth another try if all of them may pass. A level that was too short to be
    analysed is not.
    """
    levels = gather_evidence([run], slo=slo).levels
    level = next((level for level in levels if _is_asked_for(level, question)), None)
    if level is None:
        return LevelVerdict(start_unix_s=question.start_unix_s, hold_again=False, why="")
    doubts = level.why_not
    may_pass = bool(doubts) and all(isinstance(doubt, PASSING_DOUBTS) for doubt in doubts)
    why = "; ".join(sentences(doubts))
    return LevelVerdict(start_unix_s=question.start_unix_s, hold_again=may_pass, why=why)


def _is_asked_for(level: Level, question: LevelQuestion) -> bool:
    return question.start_unix_s <= level.window.begin_unix_s < question.end_unix_s
