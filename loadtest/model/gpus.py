"""A catalogue of GPUs: memory as the driver reports it, bandwidth and FLOP/s as data sheets state them. Knows
no model."""

import re
from dataclasses import dataclass

from loadtest.units import GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One type of GPU."""

    name: str
    vram_bytes: int
    """Memory as the driver reports it, not the nominal size."""
    bandwidth_bytes_s: float
    """Memory bandwidth of the data sheet, in bytes per second."""
    flops_s: float
    """Dense 16-bit FLOP/s of the data sheet."""
    flops_8bit_s: float | None = None
    """Dense FP8 FLOP/s (INT8 on GPUs without FP8); None if 8 bits are not faster than 16."""
    full_graphs: bool = True
    """Whether vLLM captures whole decode steps in CUDA graphs (from compute capability 8.0 on)."""
    big_buffers: bool = False
    """Whether vLLM's all-reduce has buffers of about 2 GiB, as on recent datacentre GPUs (see `startup`)."""
    vram_sd_bytes: float = 0.05 * GIB
    """Standard deviation of `vram_bytes` over drivers and variants of the GPU."""


def _gpu(
    name: str, *, vram_gib: float, gb_s: float, tflops: float, tflops_8bit: float | None = None, **more: bool
) -> Gpu:
    return Gpu(
        name=name,
        vram_bytes=round(vram_gib * GIB),
        bandwidth_bytes_s=gb_s * 1e9,
        flops_s=tflops * 1e12,
        flops_8bit_s=None if tflops_8bit is None else tflops_8bit * 1e12,
        **more,
    )


# Memory is the "total capacity" of torch's out-of-memory messages or of vLLM's logs. Bandwidth and FLOP/s are
# from the makers' data sheets (figures with sparsity are halved); for GeForce they are from the architecture
# white papers, for FP16 with FP32 accumulation, which vLLM's matrix products use.
T4 = _gpu(
    "Tesla T4", vram_gib=14.6, gb_s=320, tflops=65, tflops_8bit=130, full_graphs=False
)  # 14.56 to 14.74 GiB
L4 = _gpu("NVIDIA L4", vram_gib=22.03, gb_s=300, tflops=121, tflops_8bit=242)  # 22.0 to 22.2 GiB
# The A10G is AWS's variant of the A10, which has 125 TFLOP/s.
A10G = _gpu("NVIDIA A10G", vram_gib=22.06, gb_s=600, tflops=70, tflops_8bit=140)
RTX_3090 = _gpu("NVIDIA GeForce RTX 3090", vram_gib=23.68, gb_s=936, tflops=71, tflops_8bit=284)  # GA102
RTX_4090 = _gpu("NVIDIA GeForce RTX 4090", vram_gib=23.64, gb_s=1008, tflops=165, tflops_8bit=330)  # Ada
RTX_5090 = _gpu(
    "NVIDIA GeForce RTX 5090", vram_gib=31.36, gb_s=1792, tflops=209.5, tflops_8bit=419
)  # RTX Blackwell
A100_40 = _gpu("NVIDIA A100-SXM4-40GB", vram_gib=39.49, gb_s=1555, tflops=312, tflops_8bit=624)
A100_80 = _gpu("NVIDIA A100-SXM4-80GB", vram_gib=79.25, gb_s=2039, tflops=312, tflops_8bit=624)
L40S = _gpu("NVIDIA L40S", vram_gib=44.4, gb_s=864, tflops=362, tflops_8bit=733)
H100 = _gpu(
    "NVIDIA H100 80GB HBM3", vram_gib=79.19, gb_s=3350, tflops=989, tflops_8bit=1979, big_buffers=True
)
H100_NVL = _gpu("NVIDIA H100 NVL", vram_gib=93.1, gb_s=3900, tflops=835, tflops_8bit=1670, big_buffers=True)
H200 = _gpu("NVIDIA H200", vram_gib=139.81, gb_s=4800, tflops=989, tflops_8bit=1979, big_buffers=True)
B200 = _gpu("NVIDIA B200", vram_gib=178.35, gb_s=8000, tflops=2250, tflops_8bit=4500, big_buffers=True)
MI300X = _gpu("AMD Instinct MI300X", vram_gib=191.98, gb_s=5300, tflops=1307, tflops_8bit=2615)

GPU_CATALOGUE = {
    "T4": T4,
    "L4": L4,
    "A10G": A10G,
    "RTX 3090": RTX_3090,
    "RTX 4090": RTX_4090,
    "RTX 5090": RTX_5090,
    "A100 40GB": A100_40,
    "A100 80GB": A100_80,
    "L40S": L40S,
    "H100": H100,
    "H100 NVL": H100_NVL,
    "H200": H200,
    "B200": B200,
    "MI300X": MI300X,
}
_MODEL = re.compile(
    r"(?<![a-z0-9])(?:rtx)?(t4|l4|a10g|3090|4090|5090|a100|l40s|h100|h200|b200|mi300x)(?![0-9a-z])"
)


def find_gpu(name: str) -> Gpu:
    """Finds a GPU by a name such as "T4", "h100", "rtx4090" or "A100-SXM4-40GB". Raises
    ValueError for an unknown name; the message lists the known ones."""
    text = name.lower().replace("_", " ")
    match = _MODEL.search(text)
    if match is None:
        raise ValueError(
            f"The GPU {name!r} is not in the catalogue ({', '.join(GPU_CATALOGUE)}): give --vram-gib, "
            "--bandwidth-gbps and --tflops."
        )
    match match[1]:
        case "a100":
            return A100_40 if "40" in text else A100_80
        case "h100":
            return H100_NVL if "nvl" in text else H100
        case "3090" | "4090" | "5090":
            return GPU_CATALOGUE[f"RTX {match[1]}"]
    return GPU_CATALOGUE[match[1].upper()]
