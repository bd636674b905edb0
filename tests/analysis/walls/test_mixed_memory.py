"""Memory and prefix cache as walls of a mix whose classes share texts, against the simulated engine."""

import numpy as np
import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.memory.block_distribution import Holders, Occupancy, block_distribution
from analysis.notes import GaugeDisagrees
from analysis.twin.maximum import find_maximum
from analysis.virtual.service import ChatBehaviour, ChattingClass, Service, mixed
from loadtest.record import Slo
from testing.inputs.length_pairs import drawn_pairs, length_pairs
from testing.runs.virtual import small_engine
from testing.truth.mixes import run_of_mix

SLO = Slo(ttft_p95_s=5.0, tpot_p95_s=1.0)


def service() -> Service:
    """Three chat in three turns; one asks about documents, after one of two texts of 640 tokens."""
    rng = np.random.default_rng(0)
    chats = []
    for _ in range(300):
        turns, history = [], 0
        for _ in range(3):
            turns.append((history + int(rng.integers(20, 80)), int(rng.integers(30, 120))))
            history = sum(turns[-1])
        chats.append(turns)
    documents = zip(rng.integers(840, 1340, 300).tolist(), rng.integers(20, 60, 300).tolist(), strict=True)
    classes = [
        ChattingClass(
            name="chat",
            weight=3.0,
            chatting=ChatBehaviour(conversations=chats, pauses_s=rng.exponential(0.3, 500)),
        ),
        ChattingClass(
            name="rag",
            weight=1.0,
            chatting=ChatBehaviour(
                conversations=[[turn] for turn in documents],
                pauses_s=rng.exponential(0.3, 500),
                shared_prefix_tokens=640,
                shared_texts=(1.0, 1.0),
            ),
        ),
    ]
    return Service(
        engine=small_engine(num_gpu_blocks=200, enable_prefix_caching=True), chatting=mixed(classes)
    )


@pytest.fixture(scope="module")
def answer() -> ModelAnswer:
    return recommend([run_of_mix(service(), SLO, (8, 16, 22, 28, 34), seed=0)], slo=SLO)


def test_a_text_that_one_class_shares_is_held_once(answer: ModelAnswer) -> None:
    """Counted as held by each request, or with classes that users draw anew, it would be a third less."""
    true = find_maximum(service(), SLO, requests=20_000)
    assert true is not None
    assert true.wall == "kv_cache" == answer.headline.binding
    assert answer.headline.estimate_x == pytest.approx(true.x, rel=0.04)


def test_the_gauge_agrees_with_what_the_rows_explain(answer: ModelAnswer) -> None:
    assert not any(isinstance(note, GaugeDisagrees) for note in answer.warnings)


def test_the_prefix_cache_is_placed_where_measured_hits_fall(answer: ModelAnswer) -> None:
    assert answer.prefix_cache is not None
    assert answer.prefix_cache.basis in ("measured", "interpolated")
    assert 8 < answer.prefix_cache.users_x < 34


def test_classes_of_equal_users_are_as_one_class() -> None:
    law = block_distribution(drawn_pairs(), block_tokens=32)
    one, two = Occupancy([Holders(law)], 127), Occupancy([Holders(law), Holders(law)], 127)
    for users in (1, 12, 17, 24):
        assert two.at(users).preempted == pytest.approx(one.at(users).preempted, rel=1e-6)
        assert two.at(users).blocked == pytest.approx(one.at(users).blocked, rel=1e-6)


def test_a_text_that_all_of_a_class_share_takes_its_blocks_from_the_pool() -> None:
    law = block_distribution(length_pairs([100] * 50, [60] * 50), block_tokens=32)
    shared = Occupancy([Holders(law, shared_blocks=20)], 120)
    smaller = Occupancy([Holders(law)], 100)
    assert shared.at(20).preempted == pytest.approx(smaller.at(20).preempted, rel=1e-6)


def test_rare_texts_are_held_by_the_requests_that_have_them() -> None:
    law = block_distribution(length_pairs([100] * 50, [60] * 50), block_tokens=32)
    one, many = (
        Occupancy([Holders(law, shared_blocks=4, shared_texts=[1.0] * texts)], 120) for texts in (1, 100_000)
    )
    longer = block_distribution(length_pairs([228] * 50, [60] * 50), block_tokens=32)
    assert many.at(14).blocked == pytest.approx(Occupancy([Holders(longer)], 120).at(14).blocked, abs=0.001)
    assert one.at(14).blocked < many.at(14).blocked
