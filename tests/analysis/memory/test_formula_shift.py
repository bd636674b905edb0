"""The shift of the formula by what levels counted near the wall."""

import math

import pytest

from analysis.evidence.think_time import Thinking, active_of
from analysis.memory.block_distribution import Holders, Occupancy, block_distribution
from analysis.memory.formula_shift import (
    FAR_USERS,
    FORMULA_BIAS,
    FormulaShift,
    LevelPressure,
    kv_wall_users,
    measured_pressure,
    measured_shift,
)
from analysis.notes import NotSteady
from analysis.statistics.samples import MissShare
from loadtest.record import Slo
from testing.inputs.length_pairs import drawn_pairs
from testing.runs.virtual import level

SLO = Slo()


def test_counts_near_the_wall_move_the_formula_as_far_as_they_carry():
    occupancy = Occupancy([Holders(block_distribution(drawn_pairs(), block_tokens=32))], 127)
    formula = occupancy.at(18).preempted
    many = [
        LevelPressure(users=18, preemptions=2 * formula * 1e6, finished=10**6, blocked=math.nan, scrapes=0.0)
    ]
    few = [
        LevelPressure(users=18, preemptions=2 * formula * 100, finished=100, blocked=math.nan, scrapes=0.0)
    ]
    none: list[LevelPressure] = []
    sure, unsure, prior = (
        measured_shift(occupancy, seen, SLO, near_users=17.0, prior=FormulaShift())
        for seen in (many, few, none)
    )
    assert sure.preempted == pytest.approx(math.log(2), abs=0.15)
    assert prior.preempted < unsure.preempted < sure.preempted
    assert prior.preempted == pytest.approx(FORMULA_BIAS, abs=1e-6)
    assert sure.preempted_se < unsure.preempted_se < prior.preempted_se + 1e-9
    assert prior.levels == 0


def test_levels_that_queue_for_slots_do_not_move_the_formula():
    seated = level(20, max_num_seqs=8)
    doubted = level(18, why_not=(NotSteady(),))
    plain = level(16, blocked=MissShare(misses=2, n=20, effect=2.0))
    found = measured_pressure([seated, doubted, plain])
    assert [one.users for one in found] == [16]
    assert found[0].scrapes == 10.0


@pytest.mark.parametrize("thinking", [None, Thinking(think_s=2.0, idle_s=1.0, slope_s=0.05)])
def test_limits_that_allow_anything_are_met_by_no_number_of_users(thinking: Thinking | None):
    """A shift so low stands for people who accept any number of preemptions and all waiting."""
    occupancy = Occupancy(
        [
            Holders(
                distribution=block_distribution(drawn_pairs(), block_tokens=32), active=active_of(thinking)
            )
        ],
        127,
    )
    shift = FormulaShift(preempted=-1e3, blocked=-1e3)
    assert kv_wall_users(occupancy, SLO, shift=shift, start=18) == FAR_USERS
    assert kv_wall_users(occupancy, SLO, shift=FormulaShift(), start=18) < 100
