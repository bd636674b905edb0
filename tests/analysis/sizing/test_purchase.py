"""What to buy: `python -m analysis.sizing --for-users`."""

import json
import math
import re
from pathlib import Path

import pytest

from analysis.sizing.__main__ import main
from analysis.sizing.engine import size_engine
from analysis.sizing.predict import FittedPlan
from analysis.sizing.purchase.bounds import user_bounds
from analysis.sizing.purchase.candidates import Look, load_tried
from loadtest.model.gpus import GPU_CATALOGUE
from testing.inputs.model_configs import LLAMA31_8B, QWEN3_1_7B, QWEN3_30B_A3B
from testing.inputs.planned import config_file, planned_deployment, planned_workload, sized

FEW = ("--max-num-seqs", "16")
"""Few slots, so that few users have to be simulated."""
WORKLOAD = ("--prompt-tokens", "lognormal:512,0.6", "--output-tokens", "lognormal:256,0.8", "--think-s", "20")


def asked(folder: Path, config: dict[str, object], *flags: str) -> list[str]:
    return ["--config", config_file(folder, config), *WORKLOAD, *flags]


def bought(capsys: pytest.CaptureFixture[str], flags: list[str], *, code: int = 0) -> dict[str, object]:
    assert main([*flags, "--format", "json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def printed(capsys: pytest.CaptureFixture[str], flags: list[str], *, code: int = 0) -> str:
    assert main(flags) == code
    return " ".join(capsys.readouterr().out.split())


def test_replicas_hold_the_users_at_the_lower_end_of_the_single_cards_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bought(capsys, asked(tmp_path, QWEN3_1_7B, "--for-users", "400", "--gpu", "L4,T4", "--tp", "1"))
    assert found["schema"] == 1
    rows = found["fleet"]
    assert isinstance(rows, list)
    assert {row["gpu"] for row in rows} == {"L4", "T4"}
    for row in rows:
        alone = bought(capsys, asked(tmp_path, QWEN3_1_7B, "--gpu", row["gpu"]))
        # Fewer requests are simulated for each of many cards.
        assert row["users_per_replica"] == pytest.approx(alone["users"], rel=0.05)
        assert row["binding"] == alone["binding"]
        assert row["vllm_flags"] == alone["vllm_flags"]
        low, estimate, high = row["users_per_replica"]
        assert row["replicas"] == math.ceil(400 / low)
        assert row["cards"] == row["replicas"]
        assert row["replicas_by_estimate"] == math.ceil(400 / estimate)
        assert row["replicas_perhaps"] == math.ceil(400 / high)
        assert row["capacity_users"][0] == row["replicas"] * low >= 400 > (row["replicas"] - 1) * low
        assert row["headroom_fraction"] == pytest.approx(row["capacity_users"][0] / 400 - 1, abs=1e-4)
        assert row["power_w"] == row["cards"] * (GPU_CATALOGUE[row["gpu"]].power_w or math.nan)
        assert row["energy_at_most_kwh_per_hour"] == pytest.approx(row["power_w"] / 1000)
        assert row["cost_per_hour"] is None  # no price is invented
    assert [row["cards"] for row in rows] == sorted(row["cards"] for row in rows)


def test_text_says_with_how_many_cards_surely_and_perhaps_as_the_json_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = asked(tmp_path, QWEN3_1_7B, "--gpu", "T4", "--name", "Qwen3-1.7B")
    low, estimate, high = bought(capsys, flags)["users"]  # type: ignore[misc]
    assert low < estimate < high < 2 * low
    flags += ["--tp", "1", "--for-users", f"{high}"]
    text = printed(capsys, flags)
    (row,) = bought(capsys, flags)["fleet"]  # type: ignore[misc]
    assert f"Qwen3-1.7B for {high} users: 2 x T4" in text
    assert "2 x T4 hold them surely, 1 perhaps. The 2 replicas share the users." in text
    assert f"A replica holds {estimate} users (90 %: {low} to {high})" in text
    assert f"T4 1 2 2 1 {estimate} {low} to {high} " in text
    assert f"vllm serve Qwen3-1.7B {' '.join(row['vllm_flags'])}" in text
    assert "A router spreads requests evenly" in text
    assert "A router" not in printed(capsys, [*flags, "--for-users", f"{low}"])  # one replica has no router


def test_headcount_times_the_active_share_are_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = asked(tmp_path, QWEN3_1_7B, "--headcount", "100", "--active", "0.07", "--gpu", "T4", *FEW)
    found = bought(capsys, flags)
    assert (found["for_users"], found["headcount"], found["active_fraction"]) == (7, 100, 0.07)
    assert "Of 100 people, 7 % are active in the busiest hour: 7 users." in printed(capsys, flags)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prices.toml", 'currency = "EUR"\n[gpu_hour]\n"Tesla T4" = 0.5\nL4 = 0.2\n'),
        ("prices.json", '{"currency": "EUR", "gpu_hour": {"T4": 0.5, "L4": 0.2}}'),
    ],
)
def test_a_price_list_sorts_by_cost_and_leaves_unknown_prices_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    flags = asked(tmp_path, QWEN3_1_7B, "--for-users", "180", "--gpu", "L40S,T4,L4", *FEW)
    flags += ["--tp", "1", "--prices", str(tmp_path / name)]
    found = bought(capsys, flags)
    rows: dict[str, dict[str, float]] = {row["gpu"]: row for row in found["fleet"]}  # type: ignore[attr-defined]
    assert found["currency"] == "EUR"
    assert list(rows) == ["L4", "T4", "L40S"]  # fewer L40S hold them too, at an unknown price
    for card, price in (("L4", 0.2), ("T4", 0.5)):
        row = rows[card]
        assert row["cost_per_hour"] == pytest.approx(price * row["cards"])
        assert row["cost_per_user_hour"] == pytest.approx(row["cost_per_hour"] / 180)
        tokens_an_hour = 3600 * row["output_tok_s"]
        assert row["cost_per_million_output_tokens"] == pytest.approx(
            1e6 * row["cost_per_hour"] / tokens_an_hour
        )
    assert rows["L40S"]["cost_per_hour"] is None
    text = printed(capsys, flags)
    assert "EUR an hour" in text
    assert f"{rows['T4']['cost_per_hour']:.2f}" in text
    assert re.search(r"L40S 1 .* – – –", text)


def test_tokens_at_the_asked_load_follow_from_answers_and_pauses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = asked(tmp_path, QWEN3_1_7B, "--gpu", "H100", "--gpu-price", "3", "--for-users", "10")
    flags += FEW
    (row,) = bought(capsys, flags)["fleet"]  # type: ignore[misc]
    assert row["cost_per_hour"] == 3
    at_most = 10 * 256 / 20  # an answer of 256 tokens in each pause of 20 s
    assert 0.9 * at_most < row["output_tok_s"] < at_most  # an H100 needs a second for an answer
    (busy,) = bought(capsys, [*flags, "--think-s", "0"])["fleet"]  # type: ignore[misc]
    alone = bought(capsys, [*asked(tmp_path, QWEN3_1_7B, "--gpu", "H100", *FEW), "--think-s", "0"])
    (_, decode_tok_s, _) = alone["decode_tok_s_alone"]  # type: ignore[misc]
    assert 0.7 * 10 * decode_tok_s < busy["output_tok_s"] < 10 * decode_tok_s


def test_a_model_too_large_for_a_card_is_split_and_the_small_choice_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = asked(tmp_path, LLAMA31_8B, "--for-users", "5", "--gpu", "T4,RTX 3080", *FEW)
    found = bought(capsys, flags)
    rows = found["fleet"]
    assert isinstance(rows, list)
    assert [(row["gpu"], row["tensor_parallel"], row["cards"]) for row in rows] == [
        ("T4", 2, 2),
        ("RTX 3080", 4, 4),
    ]
    omitted = {(one["gpu"], one["tensor_parallel"]): one["status"] for one in found["omitted"]}  # type: ignore[attr-defined]
    assert omitted["T4", 1] == omitted["RTX 3080", 1] == "does_not_fit"
    assert omitted["RTX 3080", 2] == "not_sure"  # the pool's band begins below one request
    text = printed(capsys, flags)
    assert "Does not fit: on 1: T4, RTX 3080." in text
    assert "The lower end of the band is below one user on 2 x RTX 3080" in text


def test_nothing_to_buy_is_refused_with_the_times_that_would_be_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = asked(tmp_path, LLAMA31_8B, "--for-users", "5", "--gpu", "L4", "--tp", "1")
    flags += ["--slo-tpot-p95-s", "0.05"]
    found = bought(capsys, flags, code=3)
    assert found["refused"]
    assert found["fleet"] == []
    (omitted,) = found["omitted"]  # type: ignore[misc]
    (unmet,) = omitted["objectives_unmet"]
    assert (omitted["status"], unmet["name"]) == ("objective_not_met", "tpot")
    assert unmet["best_s"][1] > 0.05
    text = printed(capsys, flags, code=3)
    assert f"TPOT p95 is {unmet['best_s'][1]:.3g} s at best on 1 x L4" in text
    assert "vllm serve" not in text


def test_the_best_of_a_ranking_are_the_same_when_the_rest_is_not_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = ["T4", "L4", "A10G", "RTX 4090", "RTX 3090"]
    monkeypatch.setattr("analysis.sizing.purchase.demand.GPU_CATALOGUE", dict.fromkeys(cards))
    monkeypatch.setattr("analysis.sizing.__main__.MAX_RANKED", 2)
    flags = asked(tmp_path, QWEN3_1_7B, "--for-users", "60", *FEW)
    every = bought(capsys, [*flags, "--gpu", ",".join(cards)])
    best = bought(capsys, flags)
    assert len(every["fleet"]) == 5  # type: ignore[arg-type]
    assert best["fleet"] == every["fleet"][:2]  # type: ignore[index]
    rest = {one["gpu"] for one in best["omitted"] if one["status"] == "not_computed"}  # type: ignore[attr-defined]
    assert rest == set(cards) - {row["gpu"] for row in best["fleet"]}  # type: ignore[attr-defined]
    assert "Not computed, as they rank behind those above" in printed(capsys, flags)


@pytest.mark.parametrize("think", ["0", "20"])
@pytest.mark.parametrize(
    ("config", "gpu"), [(QWEN3_1_7B, "T4"), (LLAMA31_8B, "L40S"), (QWEN3_30B_A3B, "H100")]
)
def test_the_cheap_bound_is_not_below_the_lower_end(config: dict[str, object], gpu: str, think: str) -> None:
    deployment = planned_deployment(config, gpu=gpu, max_num_seqs=64)
    workload = planned_workload(think=think)
    bounds = user_bounds(FittedPlan(deployment=deployment, workload=workload, notes=[]))
    low, _, _ = size_engine(deployment, workload).users_band
    assert low <= bounds.most < 1.7 * low


def test_a_load_tells_a_candidate_that_needs_more_replicas_from_one_that_does_not() -> None:
    plan = FittedPlan(
        deployment=planned_deployment(LLAMA31_8B, gpu="L40S"), workload=planned_workload(), notes=[]
    )
    low, _, _ = size_engine(plan.deployment, plan.workload).users_band
    too_many = load_tried(plan, users=int(1.5 * low), least=1)
    few = load_tried(plan, users=int(0.8 * low), least=1)
    assert (too_many.replicas, too_many.next_look) == (2, Look.LOAD)
    assert (few.replicas, few.next_look) == (1, Look.WHOLE)


def test_the_command_compares_cards_in_several_processes(tmp_path: Path) -> None:
    done = sized(*asked(tmp_path, QWEN3_1_7B, "--for-users", "10", "--gpu", "T4, L4,T4", *FEW))
    assert re.search(r"config for 10 users: 1 x T4\n", done.stdout)
    assert done.stderr == ""


PRICED = ["--for-users", "9", "--gpu", "T4", "--prices", "PRICES"]


@pytest.mark.parametrize(
    ("flags", "prices", "message"),
    [
        (["--for-users", "9", "--headcount", "9", "--active", "0.2"], "", "not both"),
        (["--headcount", "9"], "", "need each other"),
        (["--active", "0.2"], "", "need each other"),
        (["--for-users", "9", "--gpu", "T4,T1000"], "", "'T1000' is not in the catalogue"),
        (["--for-users", "9", "--gpu", "T4,"], "", "empty name"),
        (["--gpu", "T4,L4"], "", "give --for-users"),
        (["--gpu", "T4", "--gpu-price", "2"], "", "give --for-users"),
        (["--for-users", "9", "--gpu", "T4", "--gpus", "2"], "", "--gpus"),
        (["--for-users", "9", "--gpu", "T4,L4", "--vram-gib", "20"], "", "one card"),
        (["--for-users", "9", "--gpu", "T4,L4", "--vllm-log", "PRICES"], "", "one card"),
        (["--for-users", "9", "--gpu", "T4,L4", "--tp", "3"], "", "cannot split"),
        (["--for-users", "9", "--gpu", "T4", "--figure", "x.svg"], "", "--figure"),
        (["--for-users", "9", "--gpu", "T4", "--at-users", "5"], "", "--at-users"),
        ([*PRICED, "--gpu-price", "2"], "", "not both"),
        (PRICED, "", "has no prices"),
        (PRICED, "gpu_hour = 2", "has no prices"),
        (PRICED, "[gpu_hour]\nT4 = 'cheap'", "the price of the T4 is 'cheap'"),
        (PRICED, "[gpu_hour]\nT4 = -1", "not a positive number"),
        (PRICED, "[gpu_hour]\nT4 = true", "not a positive number"),
        (PRICED, "[gpu_hour]\nT4 = nan", "not a positive number"),
        (PRICED, "[gpu_hour]\nT4 = 1\n'Tesla T4' = 2", "two prices for the T4"),
        (PRICED, "[gpu_hour]\nT1000 = 1", "'T1000' is not in the catalogue"),
        (PRICED, "[gpu_hour]\nT4 = 1\n[per_month]\nT4 = 1", "'per_month' is neither"),
        (PRICED, "currency = 5\n[gpu_hour]\nT4 = 1", "currency"),
        (PRICED, "T4 is cheap", "PRICES"),
        (["--for-users", "9", "--gpu", "T4", "--prices", "missing.toml"], "", "cannot be read"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], prices: str, message: str
) -> None:
    path = tmp_path / "PRICES"
    path.write_text(prices)
    stated = [str(path) if flag == "PRICES" else flag for flag in flags]
    assert main(asked(tmp_path, QWEN3_1_7B, *stated)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
