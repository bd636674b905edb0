"""`python -m analysis.sizing`."""

import json
import re
from pathlib import Path

import pytest

from analysis.sizing.__main__ import main
from loadtest.units import GIB
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B
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


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "T4"]
    assert "Nothing is left for the KV cache" in sized(*flags, code=3).stdout
    found = json.loads(sized(*flags, "--format", "json", code=3).stdout)
    assert found["refused"]
    assert found["users"] is None
    assert found["weights_bytes"] / GIB == pytest.approx(14.99, abs=0.01)
    tight = ["--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "L4", "--max-model-len", "131072"]
    assert "vLLM would not start" in sized(*tight, code=3).stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "T4"], "Give --config"),
        (["--config", "missing.json", "--gpu", "T4"], "cannot be read"),
        (["--config", "CONFIG", "--gpu", "T1000"], "not in the catalogue"),
        (["--config", "CONFIG", "--gpu", "T4", "--prompt-tokens", "many"], "--prompt-tokens"),
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
