"""The catalogue of GPUs."""

import pytest

from loadtest.model.gpus import A100_40, A100_80, GPU_CATALOGUE, H100, L4, RTX_4090, T4, find_gpu


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


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("A100-PCIE-80GB", "A100 PCIe 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("A100 SXM", "A100 80GB"),
        ("A100-unknown", "A100 80GB"),
        ("H100-SXM-80GB", "H100"),
        ("h100nvl", "H100 NVL"),
        ("H200-SXM-141GB", "H200"),
        ("A10-24GB", "A10"),
        ("RTXPRO6000-96GB", "RTX PRO 6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX A6000", "A6000"),
        ("rtx3090ti", "RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144GB"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("AMD Instinct MI250X / MI250", "MI250"),
    ],
)
def test_a_variant_of_a_gpu_is_found_by_published_names(name: str, label: str) -> None:
    assert find_gpu(name) is GPU_CATALOGUE[label]


@pytest.mark.parametrize("label", GPU_CATALOGUE)
def test_a_gpu_is_found_by_its_label_and_by_the_name_that_its_driver_reports(label: str) -> None:
    gpu = GPU_CATALOGUE[label]
    assert find_gpu(label) is gpu
    assert label == "MI250X" or find_gpu(gpu.name) is gpu


@pytest.mark.parametrize(
    "name",
    [
        "T400",
        "H10",
        "A1000",
        "RTX 40900",
        "",
        "RTX 6000",
        "3080 Ti",
        "RTX 4090 Laptop GPU",
        "A100 MIG 1g.10gb",
    ],
)
def test_a_card_that_only_looks_alike_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not in the catalogue"):
        find_gpu(name)


def test_more_bits_are_never_faster_and_links_are_slower_than_memory() -> None:
    for gpu in GPU_CATALOGUE.values():
        speeds = [speed for speed in (gpu.flops_s, gpu.flops_8bit_s, gpu.flops_4bit_s) if speed is not None]
        assert speeds == sorted(set(speeds))
        assert (gpu.nvlink_bytes_s or 0) < gpu.bandwidth_bytes_s
        assert gpu.vram_bytes > 9 * 2**30
        assert 50 < (gpu.power_w or 0) <= 1400
    assert len(GPU_CATALOGUE) > 45
