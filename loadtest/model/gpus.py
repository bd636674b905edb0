"""A catalogue of GPUs: memory as the driver reports it, bandwidth and FLOP/s as data sheets state them. Knows
no model."""

import re
from dataclasses import dataclass, replace

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
    """Dense 16-bit FLOP/s of the data sheet, with FP32 accumulation."""
    flops_8bit_s: float | None = None
    """Dense FP8 FLOP/s (INT8 on GPUs without FP8); None if 8 bits are not faster than 16."""
    flops_4bit_s: float | None = None
    """Dense FP4 FLOP/s (NVFP4, MXFP4); None if 4 bits are not faster than 8."""
    power_w: float | None = None
    """Board power of the data sheet (TDP), in watts; None if it is not known."""
    nvlink_bytes_s: float | None = None
    """Bandwidth of one GPU's links to its peers in one direction, in bytes per second: NVLink, or AMD's
    Infinity Fabric. None: the GPUs are linked by PCIe."""
    generation: str = ""
    """The generation, such as "hopper"; empty if it is not known."""
    full_graphs: bool = True
    """Whether vLLM captures whole decode steps in CUDA graphs (from compute capability 8.0 on)."""
    big_buffers: bool = False
    """Whether vLLM's all-reduce has buffers of about 2 GiB, as on recent datacentre GPUs (see `startup`)."""
    vram_sd_bytes: float = 0.05 * GIB
    """Standard deviation of `vram_bytes` over drivers and variants of the GPU."""


def _gpu(
    reported_name: str,
    vram_gib: float,
    gb_s: float,
    tflops: float,
    tflops_8bit: float | None,
    tflops_4bit: float | None,
    power_w: float,
    nvlink_gb_s: float | None = None,
    *,
    vram_sd_gib: float = 0.05,
    full_graphs: bool = True,
    big_buffers: bool = False,
) -> Gpu:
    return Gpu(
        name=reported_name,
        vram_bytes=round(vram_gib * GIB),
        bandwidth_bytes_s=gb_s * 1e9,
        flops_s=tflops * 1e12,
        flops_8bit_s=None if tflops_8bit is None else tflops_8bit * 1e12,
        flops_4bit_s=None if tflops_4bit is None else tflops_4bit * 1e12,
        power_w=power_w,
        nvlink_bytes_s=None if nvlink_gb_s is None else nvlink_gb_s * 1e9,
        full_graphs=full_graphs,
        big_buffers=big_buffers,
        vram_sd_bytes=vram_sd_gib * GIB,
    )


# Columns: the driver's name; GiB as the driver reports them (the "total capacity" of torch's out-of-memory
# messages or of vLLM's logs; with a wider deviation where ECC, variants or missing messages leave it open);
# GB/s of memory; dense TFLOP/s in 16, 8 and 4 bits; watts; GB/s of NVLink in one direction (bridges that are
# sold apart are left out). Sources: the makers' data sheets of the products in the comments; figures with
# sparsity are halved. GeForce: the white papers of GA102, Ada and RTX Blackwell, with FP32 accumulation,
# which vLLM's matrix products use and which GeForce cards do at half speed.
GPU_CATALOGUE = {
    # V100 and T4 data sheets: tensor cores of 16 bits; T4 also of INT8.
    "V100 16GB": _gpu("Tesla V100-SXM2-16GB", 15.77, 900, 125, None, None, 300, 150, full_graphs=False),
    "V100 32GB": _gpu("Tesla V100-SXM2-32GB", 31.74, 900, 125, None, None, 300, 150, full_graphs=False),
    "T4": _gpu("Tesla T4", 14.6, 320, 65, 130, None, 70, full_graphs=False),  # 14.56 to 14.74 GiB
    # Ampere data sheets: 8 bits are INT8. The A10G is AWS's variant of the A10.
    "A10": _gpu("NVIDIA A10", 22.06, 600, 125, 250, None, 150, vram_sd_gib=0.15),
    "A10G": _gpu("NVIDIA A10G", 22.06, 600, 70, 140, None, 300),
    "A30": _gpu("NVIDIA A30", 23.53, 933, 165, 330, None, 165),
    "A40": _gpu("NVIDIA A40", 44.43, 696, 149.7, 299.3, None, 300, vram_sd_gib=0.15),
    "A6000": _gpu("NVIDIA RTX A6000", 47.53, 768, 154.8, 309.7, None, 300, vram_sd_gib=0.15),
    "A100 PCIe 40GB": _gpu("NVIDIA A100-PCIE-40GB", 39.49, 1555, 312, 624, None, 250),
    "A100 40GB": _gpu("NVIDIA A100-SXM4-40GB", 39.49, 1555, 312, 624, None, 400, 300),
    "A100 PCIe 80GB": _gpu("NVIDIA A100 80GB PCIe", 79.25, 1935, 312, 624, None, 300),
    "A100 80GB": _gpu("NVIDIA A100-SXM4-80GB", 79.25, 2039, 312, 624, None, 400, 300),
    "A800 PCIe": _gpu("NVIDIA A800 80GB PCIe", 79.25, 1935, 312, 624, None, 300, vram_sd_gib=0.1),
    "A800": _gpu("NVIDIA A800-SXM4-80GB", 79.25, 2039, 312, 624, None, 400, 200, vram_sd_gib=0.1),
    "RTX 3080": _gpu("NVIDIA GeForce RTX 3080", 9.78, 760, 59.5, 238, None, 320),
    "RTX 3090": _gpu("NVIDIA GeForce RTX 3090", 23.68, 936, 71, 284, None, 350),
    "RTX 3090 Ti": _gpu("NVIDIA GeForce RTX 3090 Ti", 23.68, 1008, 80, 320, None, 450),
    # Ada data sheets: 8 bits are FP8. RTX 6000 Ada: 47.5 GiB, or 44.4 with ECC switched on.
    "L4": _gpu("NVIDIA L4", 22.03, 300, 121, 242, None, 72),  # 22.0 to 22.2 GiB
    "L40": _gpu("NVIDIA L40", 44.4, 864, 181, 362, None, 300, vram_sd_gib=0.1),
    "L40S": _gpu("NVIDIA L40S", 44.4, 864, 362, 733, None, 350),
    "RTX 6000 Ada": _gpu(
        "NVIDIA RTX 6000 Ada Generation", 47.5, 960, 364.2, 728.5, None, 300, vram_sd_gib=0.15
    ),
    "RTX 4070 Ti Super": _gpu("NVIDIA GeForce RTX 4070 Ti SUPER", 15.69, 672, 88.2, 176.4, None, 285),
    "RTX 4080": _gpu("NVIDIA GeForce RTX 4080", 15.69, 717, 97.5, 194.9, None, 320),
    "RTX 4080 Super": _gpu("NVIDIA GeForce RTX 4080 SUPER", 15.69, 736, 104.4, 208.9, None, 320),
    "RTX 4090": _gpu("NVIDIA GeForce RTX 4090", 23.64, 1008, 165, 330, None, 450),
    # Hopper data sheets. H800 and H20 are its variants for China; GH200 and GB10 have a CPU beside the GPU.
    "H100": _gpu("NVIDIA H100 80GB HBM3", 79.19, 3350, 989, 1979, None, 700, 450, big_buffers=True),
    "H100 PCIe": _gpu("NVIDIA H100 PCIe", 79.19, 2039, 756, 1513, None, 350),
    "H100 NVL": _gpu("NVIDIA H100 NVL", 93.1, 3900, 835, 1670, None, 400, 300, big_buffers=True),
    "H200": _gpu("NVIDIA H200", 139.81, 4800, 989, 1979, None, 700, 450, big_buffers=True),
    "H200 NVL": _gpu(
        "NVIDIA H200 NVL", 139.81, 4800, 835, 1670, None, 600, 450, vram_sd_gib=0.2, big_buffers=True
    ),
    "H800": _gpu("NVIDIA H800", 79.19, 3350, 989, 1979, None, 700, 200, vram_sd_gib=0.1, big_buffers=True),
    "H800 PCIe": _gpu("NVIDIA H800 PCIe", 79.19, 2039, 756, 1513, None, 350, vram_sd_gib=0.1),
    "H20": _gpu("NVIDIA H20", 95.1, 4000, 148, 296, None, 400, 450, vram_sd_gib=0.15, big_buffers=True),
    "GH200": _gpu(
        "NVIDIA GH200 480GB", 94.7, 4000, 989, 1979, None, 700, 450, vram_sd_gib=0.2, big_buffers=True
    ),
    "GH200 144GB": _gpu(
        "NVIDIA GH200 144G HBM3e", 142.8, 4900, 989, 1979, None, 700, 450, vram_sd_gib=0.7, big_buffers=True
    ),
    # Blackwell data sheets (HGX B200 and B300, GB200 and GB300 NVL72, RTX PRO 6000, DGX Spark).
    "B200": _gpu("NVIDIA B200", 178.35, 8000, 2250, 4500, 9000, 1000, 900, big_buffers=True),
    "B300": _gpu("NVIDIA B300", 267.7, 8000, 2250, 4500, 13500, 1100, 900, vram_sd_gib=0.7, big_buffers=True),
    "GB200": _gpu(
        "NVIDIA GB200", 184.3, 8000, 2500, 5000, 10000, 1200, 900, vram_sd_gib=0.7, big_buffers=True
    ),
    "GB300": _gpu(
        "NVIDIA GB300", 276.6, 8000, 2500, 5000, 15000, 1400, 900, vram_sd_gib=0.9, big_buffers=True
    ),
    "GB10": _gpu("NVIDIA GB10", 121.69, 273, 125, 250, 500, 140, vram_sd_gib=1.0),  # 119.6 to 121.7 GiB
    "RTX PRO 6000": _gpu(
        "NVIDIA RTX PRO 6000 Blackwell", 94.97, 1792, 503.8, 1007.6, 2015, 600, vram_sd_gib=0.1
    ),
    "RTX 5070 Ti": _gpu("NVIDIA GeForce RTX 5070 Ti", 15.47, 896, 87.9, 175.8, 703, 300),
    "RTX 5080": _gpu("NVIDIA GeForce RTX 5080", 15.47, 960, 112.6, 225.1, 900.4, 360),
    "RTX 5090": _gpu("NVIDIA GeForce RTX 5090", 31.36, 1792, 209.5, 419, 1676, 575, vram_sd_gib=0.1),
    # CDNA data sheets. vLLM sees an MI250 as two GPUs, of which this is one. The links of the MI300 and MI350
    # are those to the seven other GPUs of a board.
    "MI210": _gpu("AMD Instinct MI210", 63.98, 1638, 181, None, None, 300),
    "MI250": _gpu("AMD Instinct MI250X / MI250", 63.98, 1638, 181, None, None, 280, 200),
    "MI250X": _gpu("AMD Instinct MI250X", 63.98, 1638, 191.5, None, None, 280, 200),
    "MI300X": _gpu("AMD Instinct MI300X", 191.98, 5300, 1307, 2615, None, 750, 448),
    "MI325X": _gpu("AMD Instinct MI325X", 255.98, 6000, 1307, 2615, None, 1000, 448),
    "MI350X": _gpu("AMD Instinct MI350X", 287.98, 8000, 2307, 4614, 9228, 1000, 537.6),
    "MI355X": _gpu("AMD Instinct MI355X", 287.98, 8000, 2517, 5033, 10066, 1400, 537.6),
}
_GENERATIONS = {
    "turing": ("V100", "T4"),
    "ampere": ("A10", "A30", "A40", "A6000", "A100", "A800", "RTX 30"),
    "ada": ("L4", "RTX 6000 Ada", "RTX 40"),
    "hopper": ("H100", "H20", "H800", "GH200"),
    "blackwell": ("B200", "B300", "GB", "RTX PRO", "RTX 50"),
    "cdna": ("MI",),
}
"""How the names of a generation's GPUs begin. The V100, of Volta, counts with the next generation."""
GPU_CATALOGUE = {
    label: replace(
        gpu, generation=next(name for name, starts in _GENERATIONS.items() if label.startswith(starts))
    )
    for label, gpu in GPU_CATALOGUE.items()
}
T4, L4, A10G, H100 = (GPU_CATALOGUE[name] for name in ("T4", "L4", "A10G", "H100"))
A100_40, A100_80 = GPU_CATALOGUE["A100 40GB"], GPU_CATALOGUE["A100 80GB"]
RTX_4090 = GPU_CATALOGUE["RTX 4090"]

_USUAL = {"A100": "A100 80GB", "A100 PCIe": "A100 PCIe 80GB", "V100": "V100 16GB"}
"""Variants that a name without the size of the memory stands for."""
_VARIANTS = {"ti", "super", "laptop", "mobile", "mig", "d"}
"""Words that make another card of the same number."""


def find_gpu(name: str) -> Gpu:
    """Finds the GPU that shares most words with a name such as "T4", "rtx4090" or "A100-PCIE-80GB". Raises
    ValueError for an unknown name; the message lists the known ones."""
    words = _words(name)
    known = {label: label for label in GPU_CATALOGUE} | _USUAL
    found = [label for label in known if _words(label) <= words and not words & _VARIANTS - _words(label)]
    if not found:
        raise ValueError(
            f"The GPU {name!r} is not in the catalogue ({', '.join(GPU_CATALOGUE)}): give --vram-gib, "
            "--bandwidth-gbps and --tflops."
        )
    return GPU_CATALOGUE[known[max(found, key=lambda label: len(_words(label)))]]


def _words(name: str) -> set[str]:
    """Returns the words of a GPU's name, such as {"4070", "ti", "super"} for "RTX 4070Ti Super"."""
    text = re.sub(r"rtx|(?<=pro)(?=\d)|(?<=\d)(?=ti|super|nvl|pcie|sxm)", " ", name.lower().replace("_", " "))
    text = re.sub(r"(?<=\d)g\b|(?<=\d) gb\b", "gb", text)
    return set(re.findall(r"[a-z0-9]+", text))
