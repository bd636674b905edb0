"""The catalogue of GPUs."""

import pytest

from loadtest.model.gpus import A100_40, A100_80, H100, L4, RTX_4090, T4, find_gpu


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
def test_gpus_are_found_by_loose_names(name: str, gpu: object) -> None:
    assert find_gpu(name) is gpu


@pytest.mark.parametrize("name", ["T400", "H10", "A1000", "RTX 40900", ""])
def test_a_card_that_only_looks_alike_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not in the catalogue"):
        find_gpu(name)
