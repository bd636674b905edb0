"""`python -m analysis.tune`: recommendations from virtual runs, checked by simulating the true engine."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.tune.__main__ import main
from analysis.twin.maximum import find_maximum
from analysis.virtual.service import ChatBehaviour, Service
from loadtest.record import GpuInfo, ServerInfo, SessionsInfo, Slo
from loadtest.simulator.engine.config import EngineConfig
from testing.runs.answers import answer_for
from testing.runs.virtual import Plan, chat_lengths, small_engine, write_run

SETTINGS: dict[str, object] = {
    "settle_s": 5.0,
    "level_s": 30.0,
    "seed": 0,
    "prompt_tokens": "lognormal:124,0.1",
    "output_tokens": "lognormal:96,0.6",
    "think_s": 0.0,
    "turns": 1,
}


def server_info(engine: EngineConfig, **changes: object) -> ServerInfo:
    values: dict[str, object] = {
        "engine": "vllm",
        "version": "0.32.0",
        "max_model_len": engine.max_model_len,
        "block_size": engine.block_size,
        "num_gpu_blocks": engine.num_gpu_blocks,
        "kv_cache_tokens": engine.num_gpu_blocks * engine.block_size,
        "kv_bytes_per_token": 2048,
    }
    return ServerInfo(**(values | changes))  # type: ignore[arg-type]


def measured(folder: Path, engine: EngineConfig, levels: tuple[int, ...], **info: object) -> Path:
    facts: dict[str, object] = {"settings": SETTINGS, "server": server_info(engine)}
    write_run(folder, engine, Plan(levels=levels), info=facts | info)
    return folder


def tuned(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    engine = ("--no-async-scheduling", "--measured-max-num-batched-tokens", "2048")
    assert main([str(run), "--format", "json", *engine, *flags]) == 0
    return dict(json.loads(capsys.readouterr().out))


def true_users(engine: EngineConfig) -> float:
    """Returns the users that an engine holds, by many requests with lengths that the run did not see."""
    rng = np.random.default_rng(99)
    chats = [(chat_lengths(rng),) for _ in range(3000)]
    chatting = ChatBehaviour(conversations=chats, pauses_s=np.array([1e-3]))
    found = find_maximum(Service(engine=engine, chatting=chatting), Slo(), requests=6000)
    assert found is not None
    return found.x


def tried(answer: dict[str, Any], flag: str) -> list[dict[str, Any]]:
    return [one for one in answer["tried"] if one["change"]["flag"] == flag]


def test_slots_and_cache_type_are_recommended_together_and_the_true_engine_holds_what_was_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 slots bind first; with more the pool binds at 17 users, which half the bytes a token doubles."""
    before = small_engine(max_num_seqs=8, step_per_kv_token_s=2e-7)
    run = measured(tmp_path / "run", before, (1, 4, 6, 8, 10, 12))
    answer = tuned(run, capsys, "--measured-max-num-seqs", "8")
    assert answer["now"]["wall"] == "max_num_seqs"
    found = answer["recommended"]
    changes = {one["flag"]: one["to"] for one in found["changes"]}
    assert set(changes) == {"--max-num-seqs", "--kv-cache-dtype"}
    slots = int(changes["--max-num-seqs"])
    after = small_engine(max_num_seqs=slots, step_per_kv_token_s=1e-7, num_gpu_blocks=256)
    truth_before, truth_after = true_users(before), true_users(after)
    low, high = found["users"]["interval"]
    assert low <= truth_after <= high
    low, high = found["difference_interval"]
    assert 0 < low <= truth_after - truth_before <= high

    words = shlex.split(found["serve_command"])
    assert words[words.index("--max-num-seqs") + 1] == str(slots)
    assert words[words.index("--kv-cache-dtype") + 1] == "fp8"
    words = shlex.split(found["load_test_command"])
    assert words[words.index("--prompt-tokens") + 1] == "lognormal:124,0.1"
    levels = tuple(map(int, words[words.index("--levels") + 1].split(",")))
    assert max(levels) > truth_after > min(levels)
    proof = measured(tmp_path / "proof", after, levels)
    measured_users = answer_for(proof).headline.estimate_x
    assert measured_users == pytest.approx(truth_after, rel=0.08)


def test_a_larger_utilization_is_recommended_where_the_run_tells_what_it_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From 0.5 to 0.95 of this GPU's memory the pool grows by 128 blocks: to twice its size."""
    before = small_engine()
    vram_bytes = round(128 * 32 * 2048 / 0.45)
    run = measured(
        tmp_path / "run",
        before,
        (1, 4, 8, 12, 16, 20),
        server=server_info(before, gpu_memory_utilization=0.5, cache_dtype="fp8", max_num_seqs=64),
        gpu=GpuInfo(name="small", count=1, vram_bytes=vram_bytes),
    )
    answer = tuned(run, capsys)
    found = answer["recommended"]
    assert [one["flag"] for one in found["changes"]] == ["--gpu-memory-utilization"]
    assert tried(answer, "--kv-cache-dtype")[0]["reason"] == "it is fp8 already"
    low, high = found["difference_interval"]
    assert low <= true_users(small_engine(num_gpu_blocks=256)) - true_users(before) <= high
    assert "--gpu-memory-utilization 0.95" in found["serve_command"]


def test_no_flag_is_recommended_where_none_surely_gives_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(tmp_path / "run", small_engine(), (1, 8, 16, 20))
    flags = ["--no-async-scheduling", "--measured-max-num-seqs", "64", "--keep", "kv-cache-dtype"]
    assert main([str(run), *flags]) == 0
    said = capsys.readouterr().out
    assert "no flag surely gives more users; the limit is KV cache" in said
    assert "vllm serve" not in said.split("Not tried")[0]
    assert "--kv-cache-dtype: kept, as you asked." in said
    assert "--max-num-seqs: 17 of 64 slots are in use at the limit." in said
    longest = max(int(word.replace(",", "")) for word in said.split() if word.replace(",", "").isdecimal())
    assert longest >= 500  # the longest request is named beside --max-model-len


def test_a_larger_budget_is_found_to_help_where_prompts_wait_for_many_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 256 tokens a step, prompts of 1,500 tokens take six steps of 20 ms and more."""
    changes: dict[str, object] = {"num_gpu_blocks": 4000, "step_base_s": 0.02}
    before = small_engine(**changes, max_num_batched_tokens=256)
    facts: dict[str, object] = {"settings": SETTINGS, "server": server_info(before)}
    plan = Plan(levels=(1, 4, 8, 12), lengths=lambda _: (1500, 40))
    write_run(tmp_path / "run", before, plan, info=facts)
    flags = ["--measured-max-num-seqs", "64", "--measured-max-num-batched-tokens", "256"]
    command = [str(tmp_path / "run"), "--format", "json", "--no-async-scheduling", "--slo-ttft-p95-s", "0.5"]
    assert main([*command, *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["now"]["wall"] == "ttft"
    (up,) = (one for one in tried(answer, "--max-num-batched-tokens") if int(one["change"]["to"]) > 256)
    after = small_engine(**changes, max_num_batched_tokens=int(up["change"]["to"]))
    chatting = ChatBehaviour(conversations=[((1500, 40),)], pauses_s=np.array([1e-3]))
    truth = [
        find_maximum(Service(engine=each, chatting=chatting), Slo(ttft_p95_s=0.5), requests=6000)
        for each in (before, after)
    ]
    assert truth[0] is not None
    assert truth[1] is not None
    low, high = up["difference_interval"]
    assert low <= truth[1].x - truth[0].x <= high
    assert truth[1].x > 1.5 * truth[0].x


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["missing"], 2, "is not a folder"),
        (["RUN", "--slo-ttft-p95-s", "0.001"], 3, "Not even one user"),
        (["WITHOUT"], 3, "how many KV blocks"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    write_run(tmp_path / "run", small_engine(), Plan(levels=(1, 8), level_s=20.0))
    write_run(tmp_path / "without", small_engine(), Plan(levels=(1, 8), level_s=20.0, metrics=False))
    names = {"RUN": str(tmp_path / "run"), "WITHOUT": str(tmp_path / "without")}
    assert main([names.get(flag, flag) for flag in flags]) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_replay_of_sessions_cannot_be_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sessions = SessionsInfo(
        file="f", format="BurstGPT", sessions=1, turns=1, has_text=False, history="server", times="pauses"
    )
    run = measured(tmp_path / "run", small_engine(), (1, 4), sessions=sessions)
    assert main([str(run)]) == 3
    assert "This run replayed recorded sessions" in capsys.readouterr().err


def test_a_flag_that_is_not_tried_cannot_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["RUN", "--keep", "dtype"])
    assert ended.value.code == 2
    assert "is not tried anyway" in capsys.readouterr().err
