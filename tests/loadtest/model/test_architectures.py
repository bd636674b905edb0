"""Parameters of real architectures against the counts of the models' own code.

Configurations are facts of the published config.json files, without what memory does not depend on. Counts
are those of transformers 5.19, no weights made.
"""

import json

import pytest

from loadtest.model.architectures import parse_config
from loadtest.model.weights import parameter_count
from testing.processes import ROOT

MODELS = json.loads((ROOT / "tests" / "data" / "architectures.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_exactly_those_of_the_models_own_code(name: str) -> None:
    shape = parse_config(MODELS[name]["config"])
    assert parameter_count(shape) == MODELS[name]["parameters"]


def test_experts_that_are_not_chosen_are_not_active() -> None:
    shape = parse_config(MODELS["gpt-oss-20b"]["config"])
    # The model card: 3.6 B active parameters, embeddings counted once.
    assert shape.active_parameters / 1e9 == pytest.approx(3.6, abs=0.05)
