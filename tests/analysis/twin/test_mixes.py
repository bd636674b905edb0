"""The twin of a run with classes of users: fitted to a virtual mix, and asked for other weights."""

import argparse
from dataclasses import replace

import numpy as np
import pytest

from analysis.cli import RefusedError
from analysis.evidence.evidence import gather_evidence
from analysis.twin.calibration import ServerFlags, ServiceFit, calibrate
from analysis.twin.maximum import find_maximum
from analysis.twin.model_error import NO_LEVELS_LEFT_OUT
from analysis.twin.predictions import Scenario, predict_levels
from analysis.twin.what_if import NO_CHANGES, MemoryFacts, changes_of
from analysis.virtual.service import ChatBehaviour, ChattingClass, Service, mixed
from loadtest.errors import InputError
from loadtest.record import Slo
from testing.runs.virtual import small_engine
from testing.truth.virtual_load import VirtualLoad

SLO = Slo(ttft_p95_s=0.2, tpot_p95_s=0.02)
FLAGS = ServerFlags(max_num_seqs=64, async_scheduling=False)
TRUTH = small_engine(num_gpu_blocks=600, enable_prefix_caching=True, step_per_kv_token_s=1e-7)


def chat() -> ChatBehaviour:
    rng = np.random.default_rng(0)
    lengths = zip(rng.integers(60, 160, 200).tolist(), rng.integers(40, 100, 200).tolist(), strict=True)
    return ChatBehaviour(conversations=[[turn] for turn in lengths], pauses_s=rng.exponential(0.5, 300))


def agents() -> ChatBehaviour:
    """Agents of four steps, whose prompts begin with one of two texts of 512 tokens."""
    rng = np.random.default_rng(1)
    chats = []
    for _ in range(200):
        turns, history = [], 512
        for _ in range(4):
            turns.append((history + int(rng.integers(40, 120)), int(rng.integers(10, 40))))
            history = sum(turns[-1])
        chats.append(turns)
    return ChatBehaviour(
        conversations=chats,
        pauses_s=rng.exponential(2.0, 300),
        shared_prefix_tokens=512,
        shared_texts=(1.0, 0.5),
        tool_follows=[[True, True, True, False]] * 200,
        tool_pauses_s=rng.uniform(0.05, 0.1, 300),
    )


def service(*, agent_weight: float = 1.0) -> Service:
    """Three chats for one agent; agents have a TPOT objective half as long."""
    classes = [
        ChattingClass(name="chat", weight=3.0, chatting=chat()),
        ChattingClass(name="agent", weight=agent_weight, chatting=agents(), tpot_x=0.5),
    ]
    return Service(engine=TRUTH, chatting=mixed(classes))


@pytest.fixture(scope="module")
def fit() -> ServiceFit:
    load = VirtualLoad(service(), SLO, seed=0, with_gaps=True)
    for users in (4, 8, 16, 24, 32):
        load.hold(users, 45.0)
    load.finish()
    evidence = gather_evidence([load.run()], slo=SLO)
    return calibrate(evidence, evidence.levels, FLAGS)


def test_each_class_has_its_own_lengths_pauses_and_texts(fit: ServiceFit) -> None:
    chats, tools = fit.service.chatting.classes
    assert (chats.name, chats.weight, chats.tpot_x) == ("chat", 3.0, 1.0)
    assert (tools.name, tools.weight, tools.tpot_x) == ("agent", 1.0, 0.5)
    assert {len(one) for one in chats.chatting.conversations} == {1}
    assert np.mean([len(one) for one in tools.chatting.conversations]) == pytest.approx(4.0, abs=0.1)
    assert float(np.mean(chats.chatting.pauses_s)) == pytest.approx(0.5, rel=0.15)
    assert float(np.mean(tools.chatting.pauses_s)) == pytest.approx(2.0, rel=0.3)
    assert tools.chatting.tool_pauses_s is not None
    assert (
        0.05 <= float(tools.chatting.tool_pauses_s.min()) <= float(tools.chatting.tool_pauses_s.max()) <= 0.1
    )
    assert tools.chatting.shared_prefix_tokens == 512
    assert list(tools.chatting.shared_texts) == pytest.approx([1.0, 1.0])  # the file says two, alike


def asked(**flags: object) -> argparse.Namespace:
    return argparse.Namespace(**(NO_CHANGES | flags), seed=0)


@pytest.mark.parametrize("agent_weight", [1.0, 2.0, 0.0])
def test_the_limit_of_other_weights_is_that_of_the_true_service(fit: ServiceFit, agent_weight: float) -> None:
    """As measured, with twice the agents, and without them."""
    words, change = changes_of(asked(class_weight=[("agent", agent_weight)]), fit.service, MemoryFacts())
    assert words == [f"weights of chat 3, agent {agent_weight:g}"]
    true = service(agent_weight=agent_weight or 1.0)
    if not agent_weight:
        true = replace(true, chatting=mixed(true.chatting.classes[:1]))
    found, expected = (find_maximum(each, SLO, requests=8000) for each in (change(fit.service), true))
    assert found is not None
    assert expected is not None
    assert found.x == pytest.approx(expected.x, rel=0.06)
    assert (found.wall, found.user_class) == (expected.wall, expected.user_class)


def test_a_prediction_tells_each_class_apart(fit: ServiceFit) -> None:
    scenario = Scenario(
        service=fit.service, draws=fit.draws[:2], replicas=1, router="least-loaded", errors=NO_LEVELS_LEFT_OUT
    )
    (found,) = predict_levels(scenario, [66], SLO, advance=lambda _: None)
    assert set(found.classes) == {"chat", "agent"}
    chats, tools = found.classes["chat"], found.classes["agent"]
    assert tools["tpot_miss"] > chats["tpot_miss"]  # by its shorter objective
    assert found.values["tpot_miss"] == pytest.approx(tools["tpot_miss"], abs=1e-9)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"prompt_tokens": "50"}, "does not say which class of users it is for"),
        ({"class_weight": [("agents", 2.0)]}, "the run has no such class. It has: chat, agent."),
        ({"class_weight": [("agent", 0.0), ("chat", 0.0)]}, "one needs a weight above 0"),
    ],
)
def test_a_change_that_names_no_class_is_one_sentence(
    fit: ServiceFit, flags: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        changes_of(asked(**flags), fit.service, MemoryFacts())


def test_weights_of_a_run_without_classes_are_refused() -> None:
    plain = Service(engine=TRUTH, chatting=chat())
    with pytest.raises(InputError, match="needs a run with classes of users"):
        changes_of(asked(class_weight=[("agent", 2.0)]), plain, MemoryFacts())


def test_a_class_without_a_finished_request_cannot_be_fitted() -> None:
    load = VirtualLoad(service(), SLO, seed=0, with_gaps=True)
    load.hold(2, 60.0)  # both are chats
    load.finish()
    evidence = gather_evidence([load.run()], slo=SLO)
    with pytest.raises(RefusedError, match="No finished request of class 'agent' is left"):
        calibrate(evidence, evidence.levels, FLAGS)
