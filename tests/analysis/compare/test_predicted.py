"""`python -m analysis.compare --predicted`: sizings held against virtual runs whose truth is known."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.answers.capacity import Bound
from analysis.answers.sizing import OverheadBand, OverheadBytes, Sizing, StatedWorkload
from analysis.compare.__main__ import main
from analysis.compare.predicted.conditions import LENGTHS_BAND, class_mismatches
from analysis.compare.predicted.verdicts import judge_band
from analysis.sizing.engine import LENGTHS_KNOWN
from loadtest.record import ClassObjectives, GpuInfo, Slo, UserClass
from testing.inputs.model_configs import QWEN3_1_7B
from testing.inputs.planned import config_file, sized
from testing.runs.virtual import Plan, small_engine, write_run

WORKLOAD = {"prompt_tokens": "lognormal:124,0.1", "output_tokens": "lognormal:96,0.6", "think_s": "0"}
INFO: dict[str, object] = {
    "settings": {"settle_s": 5.0, "level_s": 30.0, "seed": 0, "turns": 1, **WORKLOAD},
    "gpu": GpuInfo(name="Tesla T4", count=1, vram_bytes=None),
}
SECONDS_ALONE = 0.0025 + 0.00015  # a step of the engine with one sequence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an engine that holds 17 users, and has a pool of 4,064 tokens."""
    folder = tmp_path_factory.mktemp("predicted") / "run"
    write_run(folder, small_engine(), Plan(), info=INFO)
    return folder


def stated(**changes: object) -> StatedWorkload:
    values: dict[str, object] = {**WORKLOAD, "slo": Slo()}
    return StatedWorkload(**(values | changes))  # type: ignore[arg-type]


def sizing(**changes: object) -> Sizing:
    """A sizing of that engine that is right in everything."""
    values: dict[str, object] = {
        "model": "tiny",
        "workload": stated(),
        "gpu": "Tesla T4",
        "gpus": 1,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "replicas": 1,
        "vllm_version": "0.32.0",
        "parameters": 1,
        "weights_bytes": 1,
        "weights_band_bytes": (1, 1, 1),
        "kv_bytes_per_token": 2048,
        "kv_fixed_bytes_per_request": 0,
        "kv_layout": [],
        "vram_bytes": 1,
        "budget_bytes": 1,
        "overhead_bytes": OverheadBytes(activation=0, cuda_graphs=0, non_torch=0),
        "overhead_band_bytes": OverheadBand(
            activation=(0, 0, 0), cuda_graphs=(0, 0, 0), non_torch=(0, 0, 0), graphs_in_budget=True
        ),
        "pool_tokens": (3900, 4064, 4200),
        "block_size": 32,
        "max_model_len": 2048,
        "tokens_per_user": 204.0,
        "users": (14, 17, 19),
        "users_x": (14.5, 17.0, 19.5),
        "binding": "kv_cache",
        "bounds": [bound("kv_cache", 14.5, 17.0, 19.5), bound("max_num_seqs", 64.0, 64.0, 64.0)],
        "decode_tok_s_alone": tuple(x / SECONDS_ALONE for x in (0.8, 1.0, 1.25)),
        "vllm_flags": ["--max-num-seqs", "64"],
        "calibrated_by": None,
    }
    return Sizing(**(values | changes))  # type: ignore[arg-type]


def bound(name: str, low: float, x: float, high: float) -> Bound:
    return Bound(
        name=name,  # type: ignore[arg-type]
        users=int(x),
        interval=(int(low), int(high)),
        basis="model",
        users_x=x,
        interval_x=(low, high),
    )


def checked(
    run: Path, predicted: Sizing, capsys: pytest.CaptureFixture[str], *, code: int = 0, **keys: object
) -> dict[str, Any]:
    """Runs the command and returns its JSON; `keys` are added to the sizing's."""
    path = run.parent / "sizing.json"
    path.write_text(json.dumps(msgspec.to_builtins(predicted) | keys))
    assert main(["--predicted", str(path), str(run), "--format", "json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def figures(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["figure"]: one for one in found["figures"]}


def test_a_sizing_that_was_right_is_supported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(run, sizing(), capsys)
    verdicts = {name: one["verdict"] for name, one in figures(found).items()}
    assert verdicts == {
        "pool_tokens": "supported",
        "kv_bytes_per_token": "supported",
        "tokens_per_user": "supported",
        "users": "supported",
        "users_kv_cache": "supported",
        "users_max_num_seqs": "not established",  # nobody met that wall
        "decode_tok_s_alone": "supported",
    }
    assert found["binding"]["verdict"] == "supported"
    assert found["differs"] == []


def test_a_runs_objective_for_stalls_is_left_out_and_said_to_be(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    info = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(info | {"settings": {"slo_stall_p95_s": 0.001}}))
    found = checked(copy, sizing(), capsys)
    assert found["binding"]["measured"] == "kv_cache"
    assert any("does not predict stalls" in warning for warning in found["warnings"])


def test_a_pool_that_was_predicted_too_large_is_refuted_by_how_much(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(checked(run, sizing(pool_tokens=(5080, 5200, 5300)), capsys))["pool_tokens"]
    assert found["verdict"] == "refuted"
    assert found["off_at_least"] == pytest.approx(4064 / 5080)
    assert found["reason"] == "at least 20 % less than the band"
    assert "--calibrate" in found["correct"]


def test_steps_that_take_longer_than_predicted_are_said_to(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = tuple(1.5 * x / SECONDS_ALONE for x in (0.8, 1.0, 1.25))
    found = figures(checked(run, sizing(decode_tok_s_alone=fast), capsys))["decode_tok_s_alone"]
    assert found["verdict"] == "refuted"
    assert found["correct"].startswith("With one user steps take 1.5")


def test_users_that_were_promised_and_not_held_are_refuted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"users_x": (25.0, 30.0, 36.0), "bounds": [bound("kv_cache", 25.0, 30.0, 36.0)]}
    found = figures(checked(run, sizing(**changes), capsys))
    assert found["users"]["verdict"] == found["users_kv_cache"]["verdict"] == "refuted"
    assert found["users"]["off_at_least"] < 17.8 / 25


def test_a_wall_that_was_not_reached_is_not_established_but_too_low_a_promise_is_refuted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With levels up to 8 users, 17 cannot be told, and a promise of at most 6 is wrong."""
    write_run(tmp_path / "run", small_engine(), Plan(levels=(1, 4, 8)), info=INFO)
    found = figures(checked(tmp_path / "run", sizing(), capsys))["users"]
    assert found["verdict"] == "not established"
    assert found["reason"] == "no wall was reached up to 8 users: load it up to 20"
    low = sizing(users_x=(4.0, 5.0, 6.0), bounds=[bound("kv_cache", 4.0, 5.0, 6.0)])
    found = figures(checked(tmp_path / "run", low, capsys))
    assert found["users"]["verdict"] == found["users_kv_cache"]["verdict"] == "refuted"
    assert found["users"]["off_at_least"] > 1


def test_latencies_at_the_load_that_was_asked_about_are_judged(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step_s = 0.0025 + 8 * 0.00015
    right, wrong = (step_s * 0.8, step_s, step_s * 1.4), (step_s * 1.5, step_s * 2, step_s * 3)
    tpot = {"mean": right, "p50": right, "p95": wrong, "p99": wrong}
    at: dict[str, object] = {
        **dict.fromkeys(("rate_per_s", "ttft_s", "e2e_s")),
        "users": 8,
        "stable": True,
        "in_flight": (8.0, 8.0, 8.0),
        "output_tok_s": (1e3, 2e3, 3e3),
        "tpot_s": tpot,
    }
    found = checked(run, sizing(), capsys, at=at)
    verdicts = {name: one["verdict"] for name, one in figures(found).items() if name[:2] == "tp"}
    assert verdicts == {"tpot_p50_s": "supported", "tpot_p95_s": "refuted", "tpot_p99_s": "refuted"}
    assert figures(found)["output_tok_s"]["users"] == 8
    found = checked(run, sizing(), capsys, at=at | {"users": 9})
    assert figures(found)["tpot_p95_s"]["reason"].startswith("no trusted level with 9 users")


@pytest.mark.parametrize(
    ("changes", "reason", "still_judged"),
    [
        (
            {"workload": stated(prompt_tokens="512")},
            "prompts differ (512 against a mean of 124 tokens)",
            {"pool_tokens", "kv_bytes_per_token", "decode_tok_s_alone"},
        ),
        (
            {"workload": stated(think_s="exp:20")},
            "think times differ (exp:20 s against 0 s)",
            {"pool_tokens", "kv_bytes_per_token", "tokens_per_user", "decode_tok_s_alone"},
        ),
        (
            {"workload": stated(turns=4)},
            "turns differ (4 against 1)",
            {"pool_tokens", "kv_bytes_per_token", "decode_tok_s_alone"},
        ),
        (
            {"workload": stated(shared_prefix_tokens=100)},
            "shared prefixes differ (100 against 0 tokens)",
            {"pool_tokens", "kv_bytes_per_token", "decode_tok_s_alone"},
        ),
        (
            {"gpu": "NVIDIA L4"},
            "GPUs differ (1 x NVIDIA L4 against 1 x Tesla T4)",
            {"kv_bytes_per_token", "tokens_per_user"},
        ),
        (
            {"model": "qwen3-1.7b"},
            "models differ (qwen3-1.7b against tiny; if they are the same, size with --name)",
            {"tokens_per_user"},
        ),
    ],
)
def test_what_differs_leaves_out_what_depends_on_it(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    reason: str,
    still_judged: set[str],
) -> None:
    found = checked(run, sizing(**changes), capsys)
    assert found["differs"] == [reason]
    for name, one in figures(found).items():
        if name in still_judged:
            assert reason not in one["reason"], name
        elif name != "users_max_num_seqs":
            assert (one["verdict"], one["reason"]) == ("not established", reason), name


def test_classes_of_users_are_compared_as_they_are_stated() -> None:
    chat = UserClass(name="chat", weight=3, prompt_tokens="100", output_tokens="50", think_s="exp:5")
    agent = UserClass(name="agent", prompt_tokens="600", output_tokens="50")
    assert class_mismatches([chat, agent], [agent, chat]) == []
    strict = ClassObjectives(ttft_p95_s=1.0)
    other = msgspec.structs.replace(chat, prompt_tokens="200", think_s="0", objectives=strict, weight=1)
    found = class_mismatches([chat, agent], [other, agent])
    assert [(one.subject, one.text) for one in found] == [
        ("lengths", "prompt_tokens of class 'chat' differs (100 against 200)"),
        ("pauses", "think_s of class 'chat' differs (exp:5 against 0)"),
        ("objectives", "objectives of class 'chat' differs (none against ttft_p95_s 1)"),
        ("lengths", "share of class 'chat' differs (75% against 50%)"),
        ("lengths", "share of class 'agent' differs (25% against 50%)"),
    ]
    (differs,) = class_mismatches([chat, agent], [])
    assert differs.text == "classes of users differ (agent, chat against none)"


def test_a_sizing_printed_by_the_command_is_read_and_says_its_workload(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", config_file(tmp_path, QWEN3_1_7B), "--gpu", "L4", "--name", "Qwen3-1.7B"]
    path = tmp_path / "sizing.json"
    path.write_text(sized(*flags, "--prompt-tokens", "100", "--format", "json").stdout)
    assert json.loads(path.read_text())["workload"]["prompt_tokens"] == "100"
    assert main(["--predicted", str(path), str(run)]) == 3  # another model, card and workload
    said = capsys.readouterr().out
    assert "0 supported, 0 refuted" in said
    assert "Size again with the measured lengths: --prompt-tokens lognormal:124,0.099 --output-tokens" in said


def test_the_text_and_markdown_say_what_the_json_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = sizing(pool_tokens=(5080, 5200, 5300))
    found = checked(run, wrong, capsys)
    for form in ("text", "markdown"):
        assert main(["--predicted", str(run.parent / "sizing.json"), str(run), "--format", form]) == 0
        said = capsys.readouterr().out
        assert "6 supported, 1 refuted, 1 not established" in said
        assert figures(found)["pool_tokens"]["correct"] in said
        assert "KV pool, tokens: at least 20 % less than the band." in said


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("{}", [], "is not what `analysis.sizing --format json` prints"),
        ("not json", [], "is not what `analysis.sizing --format json` prints"),
        ('{"schema": 9}', [], "has schema 9"),
        (None, [], "cannot be read"),
        ("{}", ["--gate"], "--predicted takes one RUN"),
        ("{}", ["--slo-ttft-p95-s", "1"], "objectives are those of the sizing"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2_here(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    flags: list[str],
    message: str,
) -> None:
    path = tmp_path / "sizing.json"
    if text is not None:
        path.write_text(text)
    assert main(["--predicted", str(path), str(run), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_sizing_that_holds_nobody_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sizing.json"
    nobody = sizing(refused=True, reasons=["It does not fit."], users_x=None)
    path.write_bytes(msgspec.json.encode(nobody))
    assert main(["--predicted", str(path), str(run)]) == 3
    assert "It does not fit." in capsys.readouterr().err


def test_one_run_needs_a_sizing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 2
    assert "takes two runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (10.0, (9.0, 11.0), "supported"),
        (7.6, (7.0, 8.3), "not established"),  # the estimate lies outside
        (9.0, (7.5, 10.0), "supported"),
        (10.0, (5.0, 20.0), "not established"),  # too wide
        (20.0, (18.0, 22.0), "refuted"),
        (5.0, (4.0, 6.0), "refuted"),
        (None, (9.0, None), "not established"),
        (None, (13.0, None), "refuted"),
    ],
)
def test_an_interval_supports_refutes_or_does_not_tell(
    value: float | None, interval: tuple[float, float | None], verdict: str
) -> None:
    assert judge_band((8.0, 10.0, 12.0), value, interval).verdict == verdict


def test_lengths_may_be_off_by_what_the_bands_of_a_sizing_allow() -> None:
    assert LENGTHS_BAND == LENGTHS_KNOWN
