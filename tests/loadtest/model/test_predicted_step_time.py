"""The predicted time of a step where engines of one server divide the experts."""

import json

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.gpus import H100
from loadtest.model.layers.tensors import ExpertPlacement
from loadtest.model.step_time import PredictedStepTime, predict_step_time
from loadtest.model.weights import WITHOUT_DATA_PARALLEL
from testing.processes import ROOT

DEEPSEEK = json.loads((ROOT / "tests" / "data" / "architectures.json").read_text())["deepseek-v3"]["config"]


def predicted(placement: ExpertPlacement = WITHOUT_DATA_PARALLEL) -> PredictedStepTime:
    return predict_step_time(parse_config(DEEPSEEK), H100, kv_bytes_per_token=70_000.0, placement=placement)


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_each_engine_reads_its_share_of_the_experts_and_all_of_the_rest(expert_parallel: bool) -> None:
    alone, eight = predicted(), predicted(ExpertPlacement(data_parallel=8, expert_parallel=expert_parallel))
    assert eight.experts_s == pytest.approx(alone.experts_s / 8, rel=1e-6)
    assert eight.dense_s == pytest.approx(alone.dense_s, rel=1e-6)


def test_engines_exchange_tokens_and_touch_each_others_experts() -> None:
    alone, eight = predicted(), predicted(ExpertPlacement(data_parallel=8, expert_parallel=True))
    assert alone.collective_token_s == 0.0
    # 58 layers with experts gather and scatter the tokens of seven others: 7,168 elements of 2 bytes each.
    assert eight.collective_token_s == pytest.approx(2 * 58 * 7 * 7168 * 2 / (450e9 * 0.6))
    one = {"decodes": 1.0, "prefills": 0.0, "kv_tokens": 0.0, "prefill_tokens": 0.0, "pairs": 0.0}
    touched_s = eight.seconds(**one) - eight.dense_s - eight.fixed_s
    assert touched_s > 7 * eight.experts_s * eight.chosen_share  # eight tokens of 256 experts, eight each
