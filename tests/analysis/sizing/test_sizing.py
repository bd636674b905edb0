"""Sizing before deployment: pools, users, bands, calibration, claims, and the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.evidence.lengths import Pairs
from analysis.sizing.__main__ import main
from analysis.sizing.answer import size_deployment
from analysis.sizing.claims import check_claims, read_claims
from analysis.sizing.deployment import PlannedDeployment, StartupCalibration
from analysis.sizing.engine import latency_walls, size_engine
from analysis.sizing.latency_curve import LatencyCurve
from analysis.sizing.pool import max_concurrency, pool_band
from analysis.sizing.startup_log import as_started, calibration_of, read_startup_log, startup_of_run
from analysis.sizing.workload import PlannedWorkload, block_law_of, draw_workload
from analysis.walls.block_law import block_law
from loadtest.errors import InputError
from loadtest.model.architectures import parse_config
from loadtest.model.cards import A100_40, A100_80, H100, L4, RTX_4090, T4, find_gpu
from loadtest.model.kv_cache import kv_layout
from loadtest.record import GpuInfo, RunInfo, ServerInfo, Slo
from loadtest.run.sink import write_run_info
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import closed_loop
from loadtest.units import GIB
from loadtest.workload.distributions import Distribution
from testing.model_configs import GEMMA2_27B, LLAMA31_8B, QWEN3_1_7B, QWEN3_30B_A3B, QWEN3_NEXT
from testing.processes import ROOT, clean_environment

EXAMPLES = ROOT / "docs" / "examples" / "claim"
CLAIM = EXAMPLES / "two-small-models-on-a-t4.toml"


def deployment(config: dict[str, object], *, gpu: str = "T4", **changes: object) -> PlannedDeployment:
    shape = parse_config(config)
    found = PlannedDeployment(
        model="model",
        shape=shape,
        gpu=find_gpu(gpu),
        version=(0, 32, 0),
        utilization=0.92,
        max_model_len=8192,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        dtype="float16",
    )
    return _replaced(found, changes)


def _replaced(found: PlannedDeployment, changes: dict[str, object]) -> PlannedDeployment:
    return replace(found, **changes)  # type: ignore[arg-type]


def workload(
    *, think: str = "0", prompt: str = "lognormal:512,0.6", max_model_len: int = 8192
) -> PlannedWorkload:
    distributions = [Distribution.parse(text) for text in (prompt, "lognormal:256,0.8", think)]
    return draw_workload(*distributions, slo=Slo(), max_model_len=max_model_len)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("T4", T4),
        ("h100", H100),
        ("rtx4090", RTX_4090),
        ("NVIDIA L4", L4),
        ("NVIDIA H100 80GB HBM3", H100),
        ("NVIDIA A100-SXM4-40GB", A100_40),
        ("a100", A100_80),
        ("Tesla T4", T4),
    ],
)
def test_cards_are_found_by_loose_names(name: str, gpu: object) -> None:
    assert find_gpu(name) is gpu


@pytest.mark.parametrize("name", ["T400", "H10", "A1000", "RTX 40900", ""])
def test_a_card_that_only_looks_alike_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not in the catalogue"):
        find_gpu(name)


@pytest.mark.parametrize(
    ("config", "gpu", "changes", "logged_gib"),
    [
        (LLAMA31_8B, "H100", {"dtype": "bfloat16"}, 58.11),
        (GEMMA2_27B, "H100", {"dtype": "bfloat16"}, 20.59),
        (LLAMA31_8B, "H100", {"dtype": "bfloat16", "tp": 4}, 67.44),
    ],
    ids=["llama-3.1-8b", "gemma-2-27b", "llama-3.1-8b on four"],
)
def test_pools_are_those_of_published_logs(
    config: dict[str, object], gpu: str, changes: dict[str, object], logged_gib: float
) -> None:
    """vLLM 0.19.0 on H100 at a utilisation of 0.95 (llm-d-planner)."""
    defaults = {"version": (0, 19, 0), "utilization": 0.95, "max_num_seqs": 1024}
    found = deployment(config, gpu=gpu, **defaults, max_num_batched_tokens=8192, **changes)
    low, middle, high = pool_band(found).kv_bytes
    assert middle / GIB == pytest.approx(logged_gib, rel=0.01)
    assert low / GIB < logged_gib < high / GIB


def test_pipeline_stages_share_the_smallest_pool() -> None:
    found = deployment(
        LLAMA31_8B,
        gpu="H100",
        version=(0, 19, 0),
        utilization=0.95,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        dtype="bfloat16",
        pp=2,
    )
    # The log of such a start-up: 1,075,312 tokens, 131.26 requests of 8,192.
    band = pool_band(found)
    assert band.blocks[1] == pytest.approx(67207, rel=0.005)
    assert max_concurrency(found, 67207) == pytest.approx(131.26, abs=0.01)


def test_a_larger_budget_came_with_0_20_and_graphs_in_it_with_0_21() -> None:
    old, new = (deployment(QWEN3_1_7B, version=version) for version in ((0, 20, 0), (0, 21, 0)))
    difference = pool_band(old).pool.kv_bytes - pool_band(new).pool.kv_bytes
    assert difference == pool_band(new).overheads.cuda_graphs > 0
    eager = deployment(QWEN3_1_7B, enforce_eager=True)
    assert pool_band(eager).overheads.cuda_graphs == 0


def test_the_general_law_of_blocks_is_the_measured_ones_for_full_attention() -> None:
    asked = workload()
    layout = kv_layout(parse_config(QWEN3_1_7B))
    pairs = Pairs(
        prompt=asked.prompt, output=asked.output, conversation=np.arange(len(asked.prompt), dtype=np.int64)
    )
    ours, theirs = block_law_of(asked, layout), block_law(pairs, block_tokens=16)
    size = min(len(ours.held), len(theirs.held))
    for name in ("held", "growth", "entry"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a[:size] == pytest.approx(b[:size], abs=1e-12)
        assert a[size:].sum() == b[size:].sum() == 0
    assert ours.steps == pytest.approx(theirs.steps)
    assert ours.growth.sum() > 0


def test_windows_and_states_bound_what_long_requests_hold() -> None:
    asked = workload(prompt="4000", max_model_len=8192)
    windows, full = kv_layout(parse_config(GEMMA2_27B)), kv_layout(parse_config(LLAMA31_8B))
    # Half of Gemma's groups stop at a window of 4,096; its requests are just longer than that.
    assert block_law_of(asked, windows).mean < 2 * block_law_of(asked, full).mean
    hybrid = kv_layout(parse_config(QWEN3_NEXT))
    law = block_law_of(asked, hybrid)
    assert law.held[: hybrid.fixed_blocks + 1].sum() == 0
    assert law.q > 0


def test_the_memory_wall_is_where_the_engine_begins_to_preempt() -> None:
    found = deployment(QWEN3_1_7B, max_num_seqs=1000, max_num_batched_tokens=2048)
    asked = workload(prompt="lognormal:256,0.5", max_model_len=1500)
    sized = size_engine(found, asked, latency=False)
    wall = sized.first.x
    assert sized.first.name == "kv_cache"

    def preempted(users: int) -> float:
        requests = (
            Request(prompt_tokens=int(p), output_tokens=int(o))
            for p, o in zip(asked.prompt, asked.output, strict=True)
        )
        config = EngineConfig(
            num_gpu_blocks=sized.band.blocks[1],
            max_model_len=1500,
            step_base_s=1.0,
            max_num_seqs=1000,
            enable_prefix_caching=False,
        )
        trace = closed_loop(config, requests, users=users, start_spread_s=200.0)
        return trace.counters.preemptions / len(trace.requests)

    assert preempted(int(0.9 * wall)) < 0.01 < preempted(int(1.12 * wall))


def test_thinking_users_are_more_than_requests_in_flight() -> None:
    found = deployment(QWEN3_1_7B)
    busy, idle = (size_engine(found, workload(think=think), latency=False) for think in ("0", "60"))
    x = {one.name: one.x for one in busy.walls}["kv_cache"]
    thinking = {one.name: one.x for one in idle.walls}["kv_cache"]
    assert thinking > 2 * x
    assert thinking * idle.active(int(thinking)) <= x  # the law never admits more at once


def test_crossings_of_a_curve_lie_between_its_loads_and_move_with_speed() -> None:
    curve = LatencyCurve(users=(10, 20, 40), ttft_s=(0.1, 0.2, 0.4), tpot_s=(0.01, 0.01, 0.01), reach=40.0)
    slo = Slo(ttft_p95_s=0.2, tpot_p95_s=0.1)
    (ttft,) = latency_walls(curve, slo)
    assert ttft.name == "ttft"
    assert ttft.x == pytest.approx(20)
    assert 10 < ttft.low < 20 < ttft.high <= 40
    (slower,) = latency_walls(curve, slo, ttft_scale=1.5)
    assert slower.x < ttft.x


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
    found = deployment(QWEN3_1_7B, utilization=0.9)
    started = as_started(found, read_startup_log(log), found.shape)
    taught = _replaced(
        found, {"calibration": calibration_of(started, read_startup_log(log), same_model=True)}
    )
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
    found = as_started(deployment(qwen3_8b, gpu="H100"), log, parse_config(qwen3_8b))
    teacher = as_started(found, log, parse_config(LLAMA31_8B))
    taught = _replaced(found, {"calibration": calibration_of(teacher, log, same_model=False)})
    low, middle, high = pool_band(taught).kv_bytes
    assert middle / GIB == pytest.approx(57.50, abs=0.1)  # as vLLM 0.19 logged for it on the same card
    assert low / GIB < 57.50 < high / GIB


def test_a_load_tests_run_folder_calibrates_too(tmp_path: Path) -> None:
    found = deployment(QWEN3_1_7B, utilization=0.9)
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
    taught = _replaced(
        found, {"calibration": calibration_of(as_started(found, log, found.shape), log, same_model=True)}
    )
    assert pool_band(taught).blocks[1] == pytest.approx(band.blocks[1] - 100, abs=1)


def test_a_simulated_run_calibrates_nothing() -> None:
    with pytest.raises(InputError, match="simulated"):
        startup_of_run(ROOT / "docs" / "example-run")


def test_another_models_start_up_narrows_the_band_less() -> None:
    found = deployment(QWEN3_1_7B)
    other = StartupCalibration(source="x", activation=1.0, non_torch_bytes=GIB // 4)
    same = StartupCalibration(source="x", activation=1.0, non_torch_bytes=GIB // 4, same_model=True)
    widths = []
    for calibration in (None, other, same):
        low, _, high = pool_band(_replaced(found, {"calibration": calibration})).kv_bytes
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0


def test_the_answer_is_the_least_wall_and_every_figure_has_a_band() -> None:
    found = size_deployment(deployment(QWEN3_1_7B), workload(think="20"), quantization=None)
    assert found.users is not None
    low, middle, high = found.users
    assert 0 < low <= middle <= high
    assert found.binding == found.bounds[0].name
    assert found.users_x is not None
    assert found.users_x[1] == pytest.approx(min(bound.users_x for bound in found.bounds))
    for bound in found.bounds:
        assert bound.interval_x[0] <= bound.users_x <= bound.interval_x[1]
    for band in (found.pool_bytes, found.blocks, found.pool_tokens, found.vllm_max_concurrency_band):
        assert band is not None
        assert band[0] < band[1] < band[2]
    assert found.sensitivity[0].effect_users != 0
    effects = [abs(one.effect_users) for one in found.sensitivity]
    assert effects == sorted(effects, reverse=True)


def test_answers_of_one_token_have_no_time_per_output_token() -> None:
    asked = replace(workload(), output=np.ones(2000, dtype=np.int64))
    found = size_deployment(deployment(QWEN3_1_7B), asked, quantization=None)
    assert "tpot" in found.not_met


def test_replicas_multiply_users() -> None:
    one, two = (
        size_deployment(deployment(QWEN3_1_7B, replicas=count), workload(), quantization=None)
        for count in (1, 2)
    )
    assert one.users_x is not None
    assert two.users_x is not None
    assert two.users_x[1] == pytest.approx(2 * one.users_x[1])
    assert "--data-parallel-size" in two.vllm_flags


def test_fewer_experts_are_read_for_fewer_sequences() -> None:
    steps = size_engine(
        deployment(QWEN3_30B_A3B, gpu="H100", dtype="bfloat16"), workload(), latency=False
    ).steps
    assert steps.base_s(1) < 0.25 * steps.base_s(1000)
    dense = size_engine(deployment(QWEN3_1_7B), workload(), latency=False).steps
    assert dense.base_s(1) == dense.base_s(1000)


def config_file(folder: Path, config: dict[str, object]) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def sized(*flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "analysis.sizing", *flags],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_answers_in_every_format(tmp_path: Path) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "T4", "--name", "Qwen3-1.7B"]
    figure = tmp_path / "vram.svg"
    text = sized(*flags, "--figure", str(figure)).stdout
    assert "Qwen3-1.7B on Tesla T4: about " in text
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


def test_the_reference_comparison_is_checked_row_by_row() -> None:
    verdicts = {(one.model, one.figure): one for one in check_claims(read_claims(CLAIM))}
    peak = verdicts["Qwen3-1.7B", "peak VRAM"]
    assert peak.verdict == "impossible"
    assert "bare weights" in peak.why
    assert verdicts["Qwen2-1.8B", "peak VRAM"].verdict == "impossible"
    assert verdicts["Qwen3-1.7B", "maximum concurrency"].verdict == "impossible"
    assert verdicts["Qwen2-1.8B", "maximum concurrency"].verdict == "consistent"
    assert verdicts["Qwen3-1.7B", "decode rate"].verdict == "consistent"
    assert "at most 93 tokens/s" in verdicts["Qwen3-1.7B", "decode rate"].why
    assert "at most 105 tokens/s" in verdicts["Qwen2-1.8B", "decode rate"].why
    both = "Qwen2-1.8B, Qwen3-1.7B"
    assert verdicts[both, "maximum concurrency, both"].verdict == "impossible"
    assert "opposite" in verdicts[both, "order of decode rates"].why
    assert verdicts["Qwen3-1.7B", "time to first token"].verdict == "cannot be told"
    assert verdicts["Qwen3-1.7B", "context"].verdict == "consistent"


def test_physics_forbids_what_it_must(tmp_path: Path) -> None:
    config_file(tmp_path, LLAMA31_8B)
    claims = tmp_path / "claims.toml"
    claims.write_text(
        '[[claim]]\nmodel = "Llama"\nconfig = "config.json"\ngpu = "H100"\ncontext = 8192\n'
        "prompt_tokens = 8000\n"
        "decode_tok_s = 400\nttft_ms = 20\nmax_concurrency = 55\npeak_vram_gb = 200\n"
    )
    verdicts = {one.figure: one.verdict for one in check_claims(read_claims(claims))}
    assert verdicts == {
        "peak VRAM": "impossible",
        "context": "consistent",
        "maximum concurrency": "consistent",
        "decode rate": "impossible",
        "time to first token": "impossible",
    }


def test_lengths_are_cut_to_the_context_and_counted() -> None:
    cut = workload(max_model_len=600)
    assert int((cut.prompt + cut.output).max()) == 600
    assert cut.clipped > 0
