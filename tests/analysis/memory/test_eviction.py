"""What is found again in a prefix cache, by the formula and by counting."""

import math

import numpy as np
import pytest

from analysis.evidence.turns import Turns
from analysis.memory.eviction import INSTANTS, Eviction, _TimeLine
from testing.inputs.conversations import chats


@pytest.mark.parametrize("answers_cached", [True, False])
def test_blocks_touched_are_those_that_counting_finds(answers_cached):
    turns = chats([1, 2, 3, 5], answers_cached=answers_cached)
    line = _TimeLine(turns, 2.0, np.random.default_rng(1), resample=False)
    within = np.array([0.0, 1.0, 4.0, 12.0, 40.0])
    total_s = float(line._end_s[-1])
    now = np.linspace(40.0, total_s, INSTANTS, endpoint=False)
    counted = [_counted(line, turns, at, within) for at in now[::40]]
    assert line.touched(within)[::40] == pytest.approx(np.array(counted))


def _counted(line, turns: Turns, at: float, within) -> list[int]:
    """Names of blocks held at that instant, or last held so long before or less."""
    last: dict[tuple[int, int, int], float] = {}
    chat = -1
    for turn, (row, begin, end) in enumerate(zip(line.row, line._start_s, line._end_s, strict=True)):
        chat += not line.again[turn]
        if begin > at:
            break
        prompt, output = turns.prompt[row], turns.output[row]
        done = min(max((at - begin) / (end - begin), 0.0), 1.0)
        tokens = prompt + done * (output - 1)
        blocks = math.ceil(tokens / 8) if end > at else (prompt + output - 1) // 8
        for place in range(blocks):
            answer = place >= prompt // 8 and not turns.answers_cached
            last[chat, turn if answer else -1, place] = math.inf if end > at else end
    return [sum(when >= at - reach for when in last.values()) for reach in within]


def test_what_is_found_falls_from_all_to_nothing():
    eviction = Eviction(chats([4] * 50), response_s=2.0, rng=np.random.default_rng(0), resample=False)
    shares = eviction.found(np.arange(1.0, 400.0), blocks=1000)
    assert shares[0] == pytest.approx(1.0)
    assert np.all(np.diff(shares) <= 1e-12)
    assert shares[-1] < 0.05
    at = eviction.wall(1000)
    assert float(eviction.found(np.array(at), 1000)) == pytest.approx(0.9, abs=1e-4)
    assert eviction.wall(2000) == pytest.approx(2 * at, rel=0.1)
