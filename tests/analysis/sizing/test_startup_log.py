"""Calibration by a start-up log or by a run folder."""

from pathlib import Path

import pytest

from analysis.sizing.deployment.planned import StartupCalibration
from analysis.sizing.deployment.pool import pool_band
from analysis.sizing.deployment.startup_log import (
    as_started,
    calibration_of,
    read_startup_log,
    startup_of_run,
)
from loadtest.errors import InputError
from loadtest.model.architectures import parse_config
from loadtest.model.gpus import T4
from loadtest.model.speculation import Speculation
from loadtest.record import GpuInfo, RunInfo, ServerInfo
from loadtest.run.sink import write_run_info
from loadtest.units import GIB
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B
from testing.inputs.planned import planned_deployment, replaced
from testing.processes import ROOT


def test_calibration_of_the_same_start_up_reproduces_it(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(
        "INFO non-default args: {'model': 'm', 'gpu_memory_utilization': 0.9}\n"
        "INFO Initializing a V1 LLM engine (v0.32.0) with config: model='m', dtype=torch.float16, "
        "max_seq_len=8192, tensor_parallel_size=1, pipeline_parallel_size=1, quantization=None, "
        "enforce_eager=False, kv_cache_dtype=auto\n"
        "INFO Model loading took 3.22 GiB memory and 2.1 seconds\n"
        "INFO Estimated CUDA graph memory: 0.31 GiB total\n"
        "INFO Available KV cache memory: 8.40 GiB\n"
    )
    found = planned_deployment(QWEN3_1_7B, utilization=0.9)
    started = as_started(found, read_startup_log(log), found.shape)
    taught = replaced(found, {"calibration": calibration_of(started, read_startup_log(log), same_model=True)})
    before, after = pool_band(found), pool_band(taught)
    assert after.pool.kv_bytes / GIB == pytest.approx(8.40, abs=0.02)
    assert after.kv_bytes[2] - after.kv_bytes[0] < (before.kv_bytes[2] - before.kv_bytes[0]) / 2


LOG_0_19 = """\
version 0.19.0
INFO non-default args: {'model': 'meta-llama/Llama-3.1-8B-Instruct', 'gpu_memory_utilization': 0.95}
DEBUG Defaulting max_num_batched_tokens to 8192 for OPENAI_API_SERVER usage context.
DEBUG Defaulting max_num_seqs to 1024 for OPENAI_API_SERVER usage context.
INFO Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B-Instruct', \
dtype=torch.bfloat16, max_seq_len=16384, tensor_parallel_size=1, pipeline_parallel_size=1, \
quantization=None, enforce_eager=False, kv_cache_dtype=auto
DEBUG worker init memory snapshot: torch_peak=0.0GiB, free_memory=78.68GiB, total_memory=79.19GiB
INFO Model loading took 14.99 GiB memory and 7.41 seconds
DEBUG Total non KV cache memory: 17.12GiB; torch peak memory increase: 1.89GiB; non-torch forward increase \
memory: 0.25GiB; weights memory: 14.99GiB.
INFO Estimated CUDA graph memory: 0.84 GiB total
INFO Available KV cache memory: 58.11 GiB
INFO GPU KV cache size: 476,016 tokens
"""
"""The lines that count of a published log (llm-d-planner, H100)."""


def test_one_models_log_predicts_anothers_pool(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text(LOG_0_19)
    log = read_startup_log(tmp_path / "vllm.log")
    assert (log.version, log.tp, log.max_num_seqs, log.quantization) == ((0, 19, 0), 1, 1024, None)
    qwen3_8b = QWEN3_1_7B | {
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    }
    found = as_started(planned_deployment(qwen3_8b, gpu="H100"), log, parse_config(qwen3_8b))
    teacher = as_started(found, log, parse_config(LLAMA31_8B))
    taught = replaced(found, {"calibration": calibration_of(teacher, log, same_model=False)})
    low, middle, high = pool_band(taught).kv_bytes
    assert middle / GIB == pytest.approx(57.50, abs=0.1)  # as vLLM 0.19 logged for it on the same card
    assert low / GIB < 57.50 < high / GIB


LOG_V0 = """\
INFO llm_engine.py] Initializing a V0 LLM engine (v0.7.0) with config: model='m', dtype=torch.bfloat16, \
max_seq_len=131072, tensor_parallel_size=1, pipeline_parallel_size=1, quantization=None, enforce_eager=False
INFO model_runner.py:1097] Loading model weights took 14.9888 GB
INFO worker.py:241] the current vLLM instance can use total_gpu_memory (79.14GiB) x gpu_memory_utilization \
(0.90) = 71.22GiB
INFO worker.py:241] model weights take 14.99GiB; non_torch_memory takes 0.12GiB; PyTorch activation peak \
memory takes 1.19GiB; the rest of the memory reserved for KV Cache is 54.93GiB.
"""
"""Lines of a published log of Llama 3.1 8B."""


def test_the_log_of_engine_v0_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text(LOG_V0)
    log = read_startup_log(tmp_path / "vllm.log")
    assert (log.version, log.utilization, log.flashinfer) == ((0, 7, 0), 0.9, None)
    logged = (log.vram_bytes, log.weights_bytes, log.activation_bytes, log.non_torch_bytes, log.kv_bytes)
    assert [round((size or 0) / GIB, 2) for size in logged] == [79.14, 14.99, 1.19, 0.12, 54.93]


@pytest.mark.parametrize(
    ("line", "flashinfer"),
    [
        ("Using FlashInfer for top-p & top-k sampling.", True),
        (
            "FlashInfer is not available. Falling back to the PyTorch-native implementation of top-p & top-k "
            "sampling.",
            False,
        ),
    ],
)
def test_the_log_says_which_sampler_the_server_used(tmp_path: Path, line: str, flashinfer: bool) -> None:
    (tmp_path / "vllm.log").write_text(LOG_V0 + f"INFO {line}\n")
    log = read_startup_log(tmp_path / "vllm.log")
    found = planned_deployment(LLAMA31_8B, gpu="A100")
    assert as_started(found, log, found.shape).flashinfer is flashinfer


def test_a_start_up_without_draft_and_adapters_corrects_a_deployment_with_them(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text(LOG_0_19)
    log = read_startup_log(tmp_path / "vllm.log")
    ngrams = Speculation(method="ngram", tokens=2)
    found = planned_deployment(LLAMA31_8B, gpu="H100", max_loras=2, speculation=ngrams)
    started = as_started(found, log, found.shape)
    assert (started.max_loras, started.speculation) == (0, None)
    (tmp_path / "vllm.log").write_text(
        LOG_0_19 + "enable_lora=True speculative_config=SpeculativeConfig(...)"
    )
    started = as_started(found, read_startup_log(tmp_path / "vllm.log"), found.shape)
    assert (started.max_loras, started.speculation) == (2, ngrams)


def test_a_load_tests_run_folder_calibrates_too(tmp_path: Path) -> None:
    found = planned_deployment(QWEN3_1_7B, utilization=0.9)
    band = pool_band(found)
    run = RunInfo(
        run_id="r",
        model="Qwen3-1.7B",
        scenario="chat",
        host="h",
        started_unix_s=0.0,
        settings={},
        server=ServerInfo(
            version="0.32.0", num_gpu_blocks=band.blocks[1] - 100, block_size=16, gpu_memory_utilization=0.9
        ),
        gpu=GpuInfo(name="Tesla T4", count=1, vram_bytes=T4.vram_bytes),
    )
    write_run_info(tmp_path, run)
    log = startup_of_run(tmp_path)
    taught = replaced(
        found, {"calibration": calibration_of(as_started(found, log, found.shape), log, same_model=True)}
    )
    assert pool_band(taught).blocks[1] == pytest.approx(band.blocks[1] - 100, abs=1)


def test_a_simulated_run_calibrates_nothing() -> None:
    with pytest.raises(InputError, match="simulated"):
        startup_of_run(ROOT / "docs" / "example-run")


def test_another_models_start_up_narrows_the_band_less() -> None:
    found = planned_deployment(QWEN3_1_7B)
    other = StartupCalibration(source="x", activation=1.0, non_torch_bytes=GIB // 4)
    same = StartupCalibration(source="x", activation=1.0, non_torch_bytes=GIB // 4, same_model=True)
    widths = []
    for calibration in (None, other, same):
        low, _, high = pool_band(replaced(found, {"calibration": calibration})).kv_bytes
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0
