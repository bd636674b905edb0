"""`python -m analysis.sizing`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.sizing.__main__ import main
from loadtest.units import GIB
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B, QWEN3_30B_A3B
from testing.inputs.planned import config_file, sized


def test_the_command_answers_in_every_format(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "T4", "--name", "Qwen3-1.7B"]
    figure = tmp_path / "vram.svg"
    text = sized(*flags, "--figure", str(figure)).stdout
    assert re.search(
        r"Qwen3-1.7B on Tesla T4: plan for (\d+) users\n +The limit is [\d.]+ users \(90 %: \1\.\d to", text
    )
    assert "vllm serve Qwen3-1.7B --dtype float16" in text
    assert figure.read_text().startswith("<svg")
    assert sized(*flags, "--format", "markdown").stdout.startswith("# Qwen3-1.7B on Tesla T4")
    found = json.loads(sized(*flags, "--format", "json").stdout)
    assert found["schema"] == 1
    assert found["kv_bytes_per_token"] == 112 * 1024
    assert found["kv_fixed_bytes_per_request"] == 0
    assert set(found["overhead_bytes"]) == {"activation", "cuda_graphs", "non_torch"}
    for key in ("pool_bytes", "pool_tokens", "blocks", "users"):
        assert len(found[key]) == 3
    assert found["pool_tokens"][1] == (found["blocks"][1] - 1) * 16


def test_one_load_is_predicted_with_bands(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4"]
    closed = json.loads(sized(*flags, "--at-users", "16", "--format", "json").stdout)["at"]
    assert closed["users"] == 16
    assert closed["rate_per_s"] is None
    assert closed["stable"]
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert set(closed[name]) == {"mean", "p50", "p95", "p99"}
        for low, estimate, high in closed[name].values():
            assert 0 < low <= estimate <= high
        assert closed[name]["p50"][1] <= closed[name]["p95"][1] <= closed[name]["p99"][1]
    # Little's law: sixteen users without think time are sixteen requests in flight.
    assert closed["in_flight"][1] == pytest.approx(16, rel=0.05)
    arriving = json.loads(sized(*flags, "--at-rate", "2", "--format", "json").stdout)["at"]
    assert arriving["in_flight"][1] == pytest.approx(2 * arriving["e2e_s"]["mean"][1], rel=0.1)
    assert arriving["output_tok_s"][1] == pytest.approx(2 * 128, rel=0.1)
    flooded = json.loads(sized(*flags, "--at-rate", "500", "--format", "json").stdout)["at"]
    assert not flooded["stable"]
    assert flooded["ttft_s"] is None
    assert "At 2 requests a second" in sized(*flags, "--at-rate", "2").stdout


def test_turns_and_a_shared_prefix_change_the_answer_as_they_do_a_load_test(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4", "--format", "json"]
    plain, turns, shared = (
        json.loads(sized(*flags, *more).stdout)
        for more in ((), ("--turns", "4"), ("--shared-prefix-tokens", "2000"))
    )
    assert turns["tokens_per_user"] > 1.5 * plain["tokens_per_user"]
    assert turns["users_x"][1] < plain["users_x"][1]
    # The prefix is held once by all, so that the memory wall hardly moves.
    walls = [{bound["name"]: bound["users_x"] for bound in one["bounds"]} for one in (plain, shared)]
    assert walls[1]["kv_cache"] == pytest.approx(walls[0]["kv_cache"], rel=0.1)


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "T4"]
    assert "Nothing is left for the KV cache" in sized(*flags, code=3).stdout
    found = json.loads(sized(*flags, "--format", "json", code=3).stdout)
    assert found["refused"]
    assert found["users"] is None
    assert found["weights_bytes"] / GIB == pytest.approx(14.99, abs=0.01)
    tight = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "L4", "--max-model-len", "131072"]
    assert "vLLM would not start" in sized(*tight, code=3).stdout


def test_an_objective_that_one_user_misses_is_refused_with_what_would_be_met(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "L4", "--max-model-len", "8192"]
    asked = [*flags, "--slo-tpot-p95-s", "0.05"]
    text = sized(*asked, code=3).stdout
    said = re.search(r"TPOT p95 is (0\.0\d+) s at best on 1 x NVIDIA L4 \(90 %: (\S+) to \S+ s\)", text)
    assert said
    assert "vllm serve" not in text
    assert "Users at each limit" in text  # what memory alone would hold stays
    found = json.loads(sized(*asked, "--format", "json", code=3).stdout)
    (unmet,) = found["objectives_unmet"]
    low, best, high = unmet["best_s"]
    assert (unmet["name"], unmet["objective_s"], f"{best:.3g}") == ("tpot", 0.05, said[1])
    assert 0.05 < best < 0.09  # 14 GiB of weights without the embedding at 300 GB/s: at least 50 ms
    assert low < best < high
    assert found["refused"]
    assert found["vllm_flags"] == []
    assert sized(*flags, "--slo-tpot-p95-s", f"{1.05 * best:.4f}").returncode == 0


def drafts(text: str = "", **stated: object) -> list[str]:
    return ["--speculative-config", text or json.dumps({"num_speculative_tokens": 2} | stated)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "T4"], "Give --config"),
        (["--config", "missing.json", "--gpu", "T4"], "cannot be read"),
        (["--config", "CONFIG", "--gpu", "T1000"], "not in the catalogue"),
        (["--config", "CONFIG", "--gpu", "T4", "--at-rate", "2", "--turns", "3"], "--turns"),
        (["--config", "CONFIG", "--gpu", "T4", "--prompt-tokens", "many"], "--prompt-tokens"),
        (["--config", "CONFIG", "--gpu", "T4", "--slo-stall-p95-s", "0.5"], "stalls are not predicted"),
        (["--config", "CONFIG", "--gpu", "T4", "--gpus", "3", "--tp", "2"], "not a multiple"),
        (["--config", "CONFIG", "--gpu", "T4", "--tp", "3"], "cannot split"),
        (
            ["--config", "CONFIG", "--gpu", "T4", "--vllm-log", "CONFIG"],
            "no line 'Available KV cache memory'",
        ),
        (["--config", "CONFIG", "--gpu", "T4", "--quantization", "awq"], "needs a checkpoint"),
        (["--claim", "CONFIG"], "--claim"),
        (["--config", "CONFIG", "--gpu", "T4", "--dtype", "bfloat16"], "no bfloat16"),
        (["--config", "CONFIG", "--gpu", "T4", "--max-model-len", "1"], "no room for an answer"),
        (["--config", "CONFIG", "--gpu", "T4", "--max-num-seqs", "4096"], "must be at least --max-num-seqs"),
        (["--config", "CONFIG", "--gpu", "T4", "--max-loras", "2"], "need --enable-lora"),
        (["--config", "CONFIG", "--gpu", "T4", "--enable-expert-parallel"], "this one has none"),
        (["--config", "CONFIG", "--gpu", "T4", *drafts("{}")], "missing required field"),
        (["--config", "CONFIG", "--gpu", "T4", *drafts(method="medusa")], "method 'medusa' is not known"),
        (["--config", "CONFIG", "--gpu", "T4", *drafts(method="mtp")], "no layers of multi-token prediction"),
        (["--config", "CONFIG", "--gpu", "T4", *drafts(method="eagle3")], "needs model"),
        (["--config", "CONFIG", "--gpu", "T4", *drafts(method="eagle3", model="x.json")], "cannot be read"),
        (["--config", "CONFIG", "--gpu", "T4", "--pp", "2", *drafts(method="ngram")], "with --pp"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, QWEN3_1_7B)
    assert main([config if flag == "CONFIG" else flag for flag in flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def answer(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main([*flags, "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_adapters_and_drafts_take_memory_and_are_part_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4"]
    draft = drafts(method="draft_model", model=flags[1])  # the model drafts for itself
    plain = answer(capsys, *flags)
    adapted = answer(capsys, *flags, "--enable-lora", "--max-loras", "4", "--max-lora-rank", "64")
    drafted = answer(capsys, *flags, *draft)
    assert plain["pool_bytes"][1] > adapted["pool_bytes"][1] > drafted["pool_bytes"][1]
    assert drafted["weights_bytes"] == 2 * plain["weights_bytes"]
    assert drafted["kv_bytes_per_token"] == 2 * plain["kv_bytes_per_token"]
    assert "--enable-lora" in adapted["vllm_flags"]
    assert "--speculative-config" in drafted["vllm_flags"]
    assert any("Latency is that without speculation" in said for said in drafted["warnings"])


def test_memory_of_the_cpu_changes_no_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4"]
    plain, offloading = answer(capsys, *flags), answer(capsys, *flags, "--kv-offloading-size", "32")
    assert offloading["pool_bytes"] == plain["pool_bytes"]
    assert any("32 GiB of CPU memory" in said for said in offloading["warnings"])


def test_a_known_sampler_narrows_the_band_of_an_older_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4", "--vllm-version", "0.10.1"]
    unknown, fused, sorting = (
        answer(capsys, *flags, *said)["pool_bytes"]
        for said in ([], ["--flashinfer-sampler"], ["--no-flashinfer-sampler"])
    )
    assert sorting[1] < unknown[1] < fused[1]
    assert unknown[0] < sorting[1]
    assert fused[1] < unknown[2]
    assert fused[2] - fused[0] < unknown[2] - unknown[0]


def test_engines_of_one_server_leave_more_memory_than_servers_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_30B_A3B), "--gpu", "H100", "--tp", "1"]
    apart = answer(capsys, *flags, "--gpus", "2")
    together = answer(capsys, *flags, "--data-parallel-size", "2", "--enable-expert-parallel")
    assert together["gpus"] == apart["gpus"] == 2
    assert together["weights_bytes"] < 0.6 * apart["weights_bytes"]
    assert "--data-parallel-size" not in apart["vllm_flags"]
    assert together["vllm_flags"][-1] == "--enable-expert-parallel"
