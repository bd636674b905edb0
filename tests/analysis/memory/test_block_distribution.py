"""The distribution of blocks against counting, and the pressure on the pool against draws."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.memory.block_distribution import Holders, Occupancy, block_distribution
from analysis.memory.formula_shift import FormulaShift, kv_wall_users
from loadtest.record import Slo
from testing.inputs.length_pairs import drawn_pairs, length_pairs

SLO = Slo()


NO_SHIFT = FormulaShift(preempted=0.0, blocked=0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 70)), min_size=1, max_size=8),
    st.integers(1, 40),
)
def test_the_block_law_is_what_counting_steps_gives(lengths, block):
    law = block_distribution(length_pairs(*zip(*lengths, strict=True)), block_tokens=block)
    held = [math.ceil((s + j) / block) for s, o in lengths for j in range(o)]
    counted = np.bincount(held, minlength=len(law.held)) / len(held)
    assert law.held == pytest.approx(counted)
    entry = np.bincount([math.ceil(s / block) for s, _ in lengths], minlength=len(law.entry)) / len(lengths)
    assert law.entry == pytest.approx(entry)
    growths = sum(math.ceil((s + o - 1) / block) - math.ceil(s / block) for s, o in lengths)
    assert law.growth.sum() == pytest.approx(growths / len(lengths))
    assert law.steps == pytest.approx(np.mean([o for _, o in lengths]))


def test_weights_count_a_pair_as_often_as_they_say():
    twice = block_distribution(length_pairs([40, 40, 200], [30, 30, 50]), block_tokens=16)
    weighted = block_distribution(
        length_pairs([40, 200], [30, 50]), block_tokens=16, weight=np.array([2.0, 1.0])
    )
    assert weighted.held == pytest.approx(twice.held)
    assert weighted.growth == pytest.approx(twice.growth)


def test_mean_tokens_are_the_length_laws_plus_half_a_block():
    rng = np.random.default_rng(1)
    prompt, output = rng.integers(50, 300, 20000), rng.integers(20, 200, 20000)
    mean = np.sum(prompt * output + output * (output - 1) / 2) / output.sum()
    found = block_distribution(length_pairs(prompt, output), block_tokens=32).mean * 32
    assert found == pytest.approx(mean + 31 / 2, rel=0.002)


def test_blocked_time_is_the_chance_that_the_pool_overflows():
    law = block_distribution(drawn_pairs(), block_tokens=32)
    hold = law.steps / (law.steps + 1)
    rng = np.random.default_rng(2)
    draws = rng.choice(len(law.held), p=law.held, size=(40000, 18)) * (rng.random((40000, 18)) < hold)
    found = Occupancy([Holders(law)], 127).at(18).blocked
    assert found == pytest.approx(np.mean(draws.sum(axis=1) > 127), abs=0.005)


def test_pressure_rises_with_users_and_a_pool_for_nobody_holds_nobody():
    occupancy = Occupancy([Holders(block_distribution(drawn_pairs(), block_tokens=32))], 127)
    pressure = [occupancy.at(users) for users in range(1, 22)]
    assert all(a.blocked <= b.blocked + 1e-12 for a, b in pairwise(pressure))
    assert pressure[0].blocked < 1e-6
    assert pressure[-1].blocked > 0.1
    assert (
        kv_wall_users(
            Occupancy([Holders(block_distribution(length_pairs([100], [100]), block_tokens=32))], 2),
            SLO,
            shift=NO_SHIFT,
            start=1,
        )
        == 0.0
    )


def test_a_shared_prefix_counts_once():
    alone = block_distribution(length_pairs([200] * 50, [100] * 50), block_tokens=32)
    shared = block_distribution(length_pairs([200] * 50, [100] * 50, shared_prefix=128), block_tokens=32)
    assert alone.mean - shared.mean == pytest.approx(4.0)
