"""Parameters of vision towers against the counts of the models' own code (transformers 5.19)."""

import pytest

from loadtest.model.layers.family import ConfigKeys
from loadtest.model.layers.vision import vision_tower

PIXTRAL = {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
MOONVIT = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
QWEN2 = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "patch_size": 14}


@pytest.mark.parametrize(
    ("model_type", "vision", "text_hidden", "parameters"),
    [
        ("qwen2_vl", QWEN2, 3584, 675_759_104),
        # Pixtral's two projections and those of Kimi are not part of the towers that transformers counts.
        ("llava", PIXTRAL | {"patch_size": 16}, 5120, 403_489_792 + 1025 * 5120 + 5121 * 5120),
        ("kimi_vl", MOONVIT, 2048, 416_866_032 + 2 * 1152 + 4608 * 4609 + 4609 * 2048),
        (
            "kimi_k25",
            {"patch_size": 14} | {f"vt_{key}": MOONVIT[key] for key in MOONVIT if key != "patch_size"},
            7168,
            416_866_032 + 2 * 1152 + 4608 * 4609 + 4609 * 7168,
        ),
    ],
)
def test_the_parameters_of_a_tower_are_exactly_those_of_its_own_code(
    model_type: str, vision: dict[str, object], text_hidden: int, parameters: int
) -> None:
    config = {"model_type": model_type, "vision_config": vision}
    (tower,), uncounted = vision_tower(config, ConfigKeys({"hidden_size": text_hidden}, {}))
    assert tower.rows == parameters
    assert uncounted == ()


def test_a_tower_that_is_not_known_is_named() -> None:
    config = {"model_type": "gemma4", "vision_config": {"hidden_size": 1152}}
    assert vision_tower(config, ConfigKeys({"hidden_size": 2048}, {})) == ([], ("the vision tower",))
