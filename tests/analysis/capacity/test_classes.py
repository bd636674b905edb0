"""Classes of users with objectives of their own: whose wall is the mix's, and what each class gets."""

import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.reading.pooling import differing_fields
from analysis.reading.runs import Run
from analysis.reporting.capacity_json import model_object
from analysis.reporting.capacity_words import first_screen
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import ClassObjectives, Slo, UserClass
from loadtest.simulator.engine.config import EngineConfig
from testing.truth.virtual_load import VirtualLoad

LEVELS = (4, 8, 16, 24)
CHAT_S, RAG_S = 0.25, 1.5
"""Objectives of TTFT: the prompts of RAG alone take 0.4 s."""


def _class(name: str, weight: float, ttft_p95_s: float, **more: object) -> UserClass:
    return UserClass(
        name=name,
        weight=weight,
        prompt_tokens="100",
        output_tokens="60",
        objectives=ClassObjectives(ttft_p95_s=ttft_p95_s),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def run() -> Run:
    """A run in which one request in ten is a long one, told to be of the class `rag`."""
    rng = np.random.default_rng(0)
    chats = zip(rng.integers(40, 200, 198).tolist(), rng.integers(40, 80, 198).tolist(), strict=True)
    engine = EngineConfig(
        num_gpu_blocks=9001,
        max_model_len=8192,
        step_base_s=0.01,
        step_per_seq_s=0.0002,
        prefill_per_token_s=0.0001,
    )
    conversations = [*([turn] for turn in chats), *itertools.repeat([(4000, 30)], 22)]
    service = Service(
        engine=engine,
        chatting=ChatBehaviour(conversations=conversations, pauses_s=rng.exponential(1.0, 500)),
    )
    load = VirtualLoad(service, Slo(), seed=0)
    for users in LEVELS:
        load.hold(users, 205.0)
    load.finish()
    plain = load.run()
    rows = plain.requests
    named = replace(
        rows, user_class=(rows.prompt_tokens >= 4000).astype(np.int64), class_names=("chat", "rag")
    )
    classes = [_class("chat", 9, CHAT_S), _class("rag", 1, RAG_S)]
    return replace(plain, requests=named, info=msgspec.structs.replace(plain.info, classes=classes))


@pytest.fixture(scope="module")
def model(run: Run) -> ModelAnswer:
    return recommend([run], slo=Slo())


def test_each_class_is_held_to_its_own_objectives_and_the_wall_is_that_of_the_first_to_miss(
    run: Run, model: ModelAnswer
) -> None:
    bound = next(bound for bound in model.bounds if bound.name == "ttft")
    assert bound.user_class == "chat"
    assert bound.users_x > LEVELS[0]  # by the objective of chat, the requests of rag miss at every level
    alone = recommend([_without_rag(run)], slo=Slo(ttft_p95_s=CHAT_S))
    of_chat = next(bound for bound in alone.bounds if bound.name == "ttft")
    assert of_chat.users_x == pytest.approx(bound.users_x, rel=1e-6)
    everyone = recommend([_without_classes(run)], slo=Slo(ttft_p95_s=CHAT_S))
    assert everyone.refused  # more than one request in twenty is of rag
    assert "of chat" in first_screen(model, slo=Slo(), confidence=0.9)[0]


def _without_rag(run: Run) -> Run:
    """The run, with RAG's requests told to say nothing of TTFT: as if they had no first token."""
    rows, rag = run.requests, run.requests.user_class == 1
    hidden = replace(rows, first_chunk_s=np.where(rag, np.nan, rows.first_chunk_s))
    return replace(_without_classes(run), requests=hidden)


def _without_classes(run: Run) -> Run:
    return replace(run, info=msgspec.structs.replace(run.info, classes=None))


def test_what_each_class_gets_is_measured_at_the_level_nearest_to_the_limit(
    run: Run, model: ModelAnswer
) -> None:
    rows = run.requests
    chat, rag = model.classes["chat"], model.classes["rag"]
    limit_x = model.headline.estimate_x
    assert limit_x is not None
    assert chat.level_users == min(LEVELS, key=lambda users: abs(np.log(users / limit_x)))
    assert chat.users + rag.users == chat.level_users
    begin, end, _ = next(level for level in run.info.schedule if level[2] == chat.level_users)
    inside = (rows.end_unix_s > begin + 5.0) & (rows.end_unix_s < end)
    ttft_s = rows.first_chunk_s - rows.sent_s
    assert rag.ttft_s.p50 == pytest.approx(np.median(ttft_s[inside & (rows.user_class == 1)]), rel=0.02)
    assert chat.ttft_s.p50 == pytest.approx(np.median(ttft_s[inside & (rows.user_class == 0)]), rel=0.02)
    assert rag.objectives["ttft"].p95_s == RAG_S
    assert rag.objectives["tpot"].p95_s == Slo().tpot_p95_s  # what a class does not say holds as for all
    assert rag.objectives["ttft"].met
    assert chat.in_time is not None
    assert chat.in_time[0] <= chat.in_time[1] <= chat.in_time[2]
    assert chat.kv_share is not None
    assert rag.kv_share is not None
    assert chat.kv_share + rag.kv_share == pytest.approx(1.0)
    assert rag.kv_share > 0.7  # one request in ten, each forty times as long
    assert model_object(model)["classes"] == model.classes


def test_a_text_that_a_class_shares_is_held_once_where_the_server_caches_it(run: Run) -> None:
    def rag_share(*, cached: bool) -> float:
        assert run.info.classes is not None
        classes = [run.info.classes[0], _class("rag", 1, RAG_S, shared_tokens=3600)]
        server = msgspec.structs.replace(run.info.server, enable_prefix_caching=cached)
        info = msgspec.structs.replace(run.info, classes=classes, server=server)
        share = recommend([replace(run, info=info)], slo=Slo()).classes["rag"].kv_share
        assert share is not None
        return share

    assert rag_share(cached=True) < 0.98 * rag_share(cached=False)


def test_runs_of_other_classes_are_not_pooled(run: Run) -> None:
    assert run.info.classes is not None
    other = msgspec.structs.replace(run.info, classes=run.info.classes[:1])
    assert differing_fields(run.info, other) == ["classes"]
