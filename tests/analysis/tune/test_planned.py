"""`python -m analysis.tune --config FILE --gpu NAME`: flags of a deployment that is only planned."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B
from testing.inputs.planned import answered, config_file

WORKLOAD = ["--prompt-tokens", "lognormal:1024,0.6", "--output-tokens", "lognormal:256,0.8"]


def tuned(*flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return answered("analysis.tune", *flags, code=code)


def answer(*flags: str) -> dict[str, Any]:
    return dict(json.loads(tuned(*flags, "--format", "json").stdout))


def verdicts(found: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(one["change"]["flag"], one["change"]["to"]): one["verdict"] for one in found["tried"]}


def test_few_slots_are_raised_and_the_commands_say_so(tmp_path: Path) -> None:
    config = config_file(tmp_path, QWEN3_1_7B)
    model = ["--config", config, "--gpu", "L4", "--max-model-len", "8192", *WORKLOAD]
    found = answer(*model, "--max-num-seqs", "4", "--keep", "kv-cache-dtype")
    assert found["predicted"]
    assert found["now"]["wall"] == "max_num_seqs"
    recommended = found["recommended"]
    flags = {one["flag"]: one["to"] for one in recommended["changes"]}
    assert int(flags["--max-num-seqs"]) >= 16
    serve = shlex.split(recommended["serve_command"])
    assert serve[serve.index("--max-num-seqs") + 1] == flags["--max-num-seqs"]
    low, high = recommended["difference_interval"]
    assert 0 < low <= recommended["difference"] <= high
    assert "--levels" in recommended["load_test_command"]
    assert recommended["compare_command"] is None
    assert verdicts(found)["--kv-cache-dtype", ""] == "not simulated"


def test_cards_are_divided_otherwise_where_that_holds_more(tmp_path: Path) -> None:
    """Weights that leave a card hardly any pool: one replica of two cards holds more than two of one."""
    config = config_file(tmp_path, LLAMA31_8B)
    flags = ["--config", config, "--gpu", "L4", "--gpus", "2", "--tp", "1", "--max-model-len", "8192"]
    kept = [word for name in ("kv-cache-dtype", "gpu-memory-utilization") for word in ("--keep", name)]
    found = answer(*flags, *WORKLOAD, *kept, "--slo-tpot-p95-s", "0.2")
    assert ("--tensor-parallel-size", "2") in verdicts(found)
    assert verdicts(found)["--tensor-parallel-size", "2"] == "more"
    words = shlex.split(found["recommended"]["serve_command"])
    assert words[words.index("--tensor-parallel-size") + 1] == "2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give either a run folder"),
        (["RUN", "--config", "CONFIG", "--gpu", "L4"], "Give either a run folder"),
        (["RUN", "--gpu", "L4"], "--gpu counts only where a deployment is planned"),
        (["RUN", "--workload", "mix.toml"], "--workload counts only where a deployment is planned"),
        (["--config", "CONFIG", "--gpu", "L4", "--measured-max-num-seqs", "8"], "only where a run is tuned"),
        (["--config", "CONFIG", "--gpu", "L4", "--at-users", "8"], "--at-users"),
        (["--config", "CONFIG", "--gpu", "T1000"], "not in the catalogue"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path: Path, flags: list[str], message: str) -> None:
    config = config_file(tmp_path, QWEN3_1_7B)
    words = [{"CONFIG": config, "RUN": str(tmp_path)}.get(word, word) for word in flags]
    said = tuned(*words, code=2).stderr
    assert message in said
    assert len(said.strip().splitlines()) <= 2


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    said = tuned("--config", config_file(tmp_path, LLAMA31_8B), "--gpu", "T4", code=3).stderr
    assert "Nothing is left for the KV cache" in said
