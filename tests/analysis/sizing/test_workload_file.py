"""Sizing for a workload file: classes with lengths, pauses, shared texts and objectives of their own."""

import json
from pathlib import Path

import msgspec
import pytest

from analysis.sizing.engine import SizedEngine, size_engine
from analysis.sizing.latency.load import simulate_closed_loop
from analysis.sizing.workload import draw_workload
from analysis.twin.maximum import find_maximum
from loadtest.record import ClassObjectives, Slo, UserClass
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B
from testing.inputs.planned import config_file, planned_deployment, sized

CHAT = UserClass(
    name="chat",
    weight=3,
    prompt_tokens="lognormal:150,0.6",
    output_tokens="lognormal:120,0.6",
    turns="1-3",
    think_s="exp:3",
)
AGENT = UserClass(
    name="agent",
    shared_tokens=1600,
    shared_prompts=2,
    prompt_tokens="100-300",
    output_tokens="lognormal:60,0.5",
    steps="2-5",
    tool_tokens="lognormal:300,0.5",
    tool_s="0.2-0.6",
)
FILE = """
[[class]]
name = "chat"
weight = 2
prompt_tokens = "lognormal:300,0.5"
output_tokens = "lognormal:120,0.6"

[[class]]
name = "rag"
weight = 1
shared_tokens = 500
prompt_tokens = "1000-3000"
output_tokens = "lognormal:60,0.5"
objectives = { ttft_p95_s = %s }
"""


def _sized(*classes: UserClass, gpu: str = "L4", slo: Slo | None = None, latency: bool = True) -> SizedEngine:
    deployment = planned_deployment(QWEN3_1_7B, gpu=gpu, max_num_seqs=1024, max_num_batched_tokens=4096)
    workload = draw_workload(classes, slo=slo or Slo(), max_model_len=8192)
    return size_engine(deployment, workload, latency=latency, length=0.5)


def test_a_mix_agrees_with_its_simulation() -> None:
    loose = Slo(ttft_p95_s=60, tpot_p95_s=2)
    found = _sized(CHAT, AGENT, slo=loose, latency=False)
    assert found.binding_wall.name == "kv_cache"
    start = int(found.binding_wall.x)
    true = find_maximum(found.service, loose, start=start, requests=4000)
    assert true is not None
    assert true.wall == "kv_cache"
    assert found.binding_wall.x == pytest.approx(true.x, rel=0.1)
    # Alone, chats are far more: their pauses, and their small requests.
    assert _sized(CHAT, slo=loose, latency=False).binding_wall.x > 1.2 * found.binding_wall.x


@pytest.mark.parametrize("classes", [(CHAT,), (AGENT,), (CHAT, AGENT)])
def test_as_many_are_in_flight_as_in_a_simulation(classes: tuple[UserClass, ...]) -> None:
    """Also where most of a prompt is in the prefix cache, which takes no time to compute."""
    found = _sized(*classes, latency=False)
    users = int(0.6 * found.binding_wall.x)
    simulated = simulate_closed_loop(found.service, users, length=0.2).in_flight
    assert users * found.pace.active(users) == pytest.approx(simulated, rel=0.25)


def test_the_class_nearest_to_its_objective_sets_the_limit() -> None:
    plain = _sized(CHAT, AGENT)
    fast = msgspec.structs.replace(CHAT, objectives=ClassObjectives(tpot_p95_s=0.018))
    strict = _sized(fast, AGENT)
    assert strict.binding_wall.name == "tpot"
    assert strict.binding_wall.x < plain.binding_wall.x


def test_one_class_is_the_same_as_its_flags(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(
        '[[class]]\nname = "all"\nweight = 1\nprompt_tokens = "lognormal:300,0.5"\n'
        'output_tokens = "lognormal:100,0.5"\nturns = 2\nthink_s = "exp:5"\nshared_tokens = 200\n'
    )
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4", "--format", "json"]
    lengths = ["--prompt-tokens", "lognormal:300,0.5", "--output-tokens", "lognormal:100,0.5"]
    rest = ["--turns", "2", "--think-s", "exp:5", "--shared-prefix-tokens", "200"]
    by_file = json.loads(sized(*flags, "--workload", str(path)).stdout)
    by_flags = json.loads(sized(*flags, *lengths, *rest).stdout)
    for ours, theirs in zip(by_file["bounds"], by_flags["bounds"], strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["users_x"] == pytest.approx(theirs["users_x"], rel=0.03)
    (only,) = by_file["classes"]
    assert only["users"] == by_file["users"][0]
    assert only["kv_share"] == 1.0
    assert by_flags["classes"] == []


def test_the_answer_of_a_mix_shows_each_class(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(FILE % "1.0")
    flags = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "L40S", "--workload", str(path)]
    found = json.loads(sized(*flags, "--format", "json").stdout)
    chat, rag = found["classes"]
    assert (chat["name"], rag["name"]) == ("chat", "rag")
    assert chat["users"] + rag["users"] == found["users"][0]
    assert chat["users"] == pytest.approx(2 * rag["users"], abs=2)
    assert chat["kv_share"] + rag["kv_share"] == pytest.approx(1.0)
    assert rag["kv_share"] > 0.5
    assert (chat["ttft_objective_s"], rag["ttft_objective_s"]) == (2.0, 1.0)
    assert found["workload"]["classes"][1]["name"] == "rag"
    walls = {one["name"]: one["class"] for one in found["bounds"]}
    assert walls["ttft"] == "rag"
    assert walls["kv_cache"] is None
    text = sized(*flags).stdout
    assert "A mix of chat (67 %), rag (33 %)" in text
    assert "Each class at" in text


def test_a_class_that_misses_its_objective_alone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(FILE % "0.01")
    flags = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "L40S", "--workload", str(path)]
    done = sized(*flags, code=3)
    assert "with one user of class 'rag' alone; at most 0.01 s is asked" in " ".join(done.stdout.split())


def test_a_purchase_takes_a_workload_file(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(FILE % "1.0")
    asked = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "L40S,H100", "--for-users", "300"]
    found = json.loads(sized(*asked, "--workload", str(path), "--format", "json").stdout)
    assert len({one["gpu"] for one in found["fleet"]}) == 2
    assert all(one["capacity_users"][0] >= 300 for one in found["fleet"])


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        (["--turns", "2"], FILE % "1.0", "--turns cannot be combined with --workload"),
        (["--prompt-tokens", "5"], FILE % "1.0", "--prompt-tokens cannot be combined with --workload"),
        ([], FILE % '"soon"', "ttft_p95_s must be a number above 0"),
        ([], '[[class]]\nname = "a"\n', "class 'a': weight is missing"),
        (
            ["--at-rate", "2"],
            (FILE % "1.0").replace("weight = 2", "weight = 2\nturns = 3"),
            "--at-rate cannot be combined with turns and steps of class 'chat'",
        ),
    ],
)
def test_bad_workloads_get_one_sentence(tmp_path: Path, flags: list[str], text: str, message: str) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(text)
    config = config_file(tmp_path, QWEN3_1_7B)
    done = sized("--config", config, "--gpu", "L4", "--workload", str(path), *flags, code=2)
    assert message in done.stderr
