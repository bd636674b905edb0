"""Reads which matrices of a model are quantised, and counts their bytes, scales included. Knows no layers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DTYPE_BYTES = {"float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4}


class UnsupportedModelError(ValueError):
    """Raised when the model of a config.json is not supported, or the file is not a config.json."""


def dtype_bytes(dtype: str) -> int:
    """Returns the bytes of one element. Raises UnsupportedModelError for types not in DTYPE_BYTES."""
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(
            f"The type {dtype!r} is not supported: use one of float16, bfloat16, float32."
        )
    return DTYPE_BYTES[dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How one matrix is stored: `bits` bits per weight, and one scale per `block` or `group` of weights."""

    bits: int
    scale_bytes: float = 2.0
    """Bytes of one scale, including its zero point if it has one."""
    group: int = 0
    """Columns of a row that share a scale. 0: all columns of the row; -1: the matrix has one scale."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale; None: `group` says which weights do."""
    column_bytes: int = 0
    """Bytes per column of the index that GPTQ stores for its order of columns; 0 without an index."""
    pad: int = 1
    """Multiple to which rows and columns are padded on each GPU; 1: no padding."""

    def matrix_bytes(self, rows: float, columns: float) -> float:
        """Returns the bytes of `rows` rows and `columns` columns: a whole matrix, or one GPU's part of it."""
        rows, columns = (-(-size // self.pad) * self.pad for size in (rows, columns))
        weights = rows * columns * self.bits / 8
        if self.block is not None:
            block_rows, block_columns = self.block
            return weights + -(-rows // block_rows) * -(-columns // block_columns) * self.scale_bytes
        if self.group < 0:
            return weights + self.scale_bytes
        scales = rows * (-(-columns // self.group) if self.group else 1)
        return weights + scales * self.scale_bytes + columns * self.column_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How the matrices of a model are stored. The first rule whose target matches a module applies to it."""

    method: str
    rules: tuple[tuple[str, Scheme], ...]
    """Pairs of target and scheme. A target is "Linear" (all matrices), "experts", or a pattern (see
    `_matches`)."""
    ignored: tuple[str, ...]
    """Patterns of modules that stay in the model's type."""
    head: bool = False
    """Whether the output head is quantised too."""
    fp8_cache: bool = False
    """Whether the checkpoint has scales for an FP8 KV cache, which vLLM then uses for `--kv-cache-dtype
    auto`."""

    def scheme(self, name: str) -> Scheme | None:
        """Returns the scheme of the module `name`; None if the module is not quantised."""
        if name == "lm_head" and not self.head:
            return None
        if any(_matches(pattern, name) for pattern in self.ignored):
            return None
        for target, scheme in self.rules:
            if target == "Linear" or (target == "experts" and ".experts." in name) or _matches(target, name):
                return scheme
        return None


def _matches(pattern: str, name: str) -> bool:
    """Whether `pattern` matches the module `name`.

    A pattern is "re:" followed by a regular expression, a glob with "*", or a part of the module's path (as
    in vLLM and compressed-tensors).
    """
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    if "*" in pattern:
        return re.fullmatch(".*" + re.escape(pattern).replace(r"\*", ".*"), name) is not None
    return f".{pattern.strip('.')}." in f".{name}."


_ONLINE_SCHEMES = {"fp8": Scheme(bits=8, scale_bytes=4.0, group=-1)}
"""Schemes to which `--quantization` converts 16-bit weights while it loads them."""
_DECLARED_METHODS = {
    "modelopt",
    "modelopt_fp4",
    "awq",
    "awq_marlin",
    "gptq",
    "gptq_marlin",
    "compressed-tensors",
    "mxfp4",
}
"""Values of `--quantization` that need a checkpoint which is stored with this method and declares it."""


def parse_quantisation(declared: object, flag: str | None) -> Quantisation | None:
    """Returns how the model is quantised; None if it is not.

    `declared` is what the checkpoint declares (quantization_config of config.json, or hf_quant_config.json).
    If the checkpoint declares nothing, `flag` decides, the value of `--quantization`. Raises
    UnsupportedModelError for a method whose bytes are not known here.
    """
    if isinstance(declared, Mapping) and declared:
        return _declared(declared)
    if flag in (None, "none"):
        return None
    if flag == "modelopt":  # NVIDIA's FP8 checkpoints: one scale per matrix, and a head that is not quantised
        return Quantisation(method="modelopt", rules=(("Linear", _ONLINE_SCHEMES["fp8"]),), ignored=())
    if flag == "bitsandbytes":
        return Quantisation(method="bitsandbytes", rules=(("Linear", _NF4),), ignored=())
    if flag in _ONLINE_SCHEMES:
        return Quantisation(method=str(flag), rules=(("Linear", _ONLINE_SCHEMES[str(flag)]),), ignored=())
    if flag in _DECLARED_METHODS:
        raise UnsupportedModelError(
            f"--quantization {flag} needs a checkpoint that is stored in this way, and this config.json does "
            "not declare it: give the config.json of the quantised checkpoint."
        )
    raise UnsupportedModelError(f"The quantisation {flag!r} is not supported.")


_NF4 = Scheme(bits=4, scale_bytes=1.0 + 4.0 / 256, group=64)
"""NF4 of bitsandbytes with double quantisation: a one-byte scale for each 64 weights, and a float for each
256 scales."""
_NVFP4 = Scheme(bits=4, scale_bytes=1.0, group=16)
_MXFP4 = Scheme(bits=4, scale_bytes=1.0, group=32)
_GPT_OSS = Scheme(bits=4, scale_bytes=1.0, group=32, pad=256)
"""MXFP4 with the padding of vLLM's kernels. Agrees with vLLM's logs within 1 % (gpt-oss-120b on four A100,
20b on two H100)."""


def _declared(config: Mapping[str, object]) -> Quantisation:
    inner = config.get("quantization")
    if isinstance(inner, Mapping):  # a hf_quant_config.json
        config = {**inner, "quant_method": "modelopt"}
    method = str(config.get("quant_method"))
    reader = _READERS.get(method)
    if reader is None:
        raise UnsupportedModelError(
            f"The quantisation {method!r} of this config.json is not supported: known are "
            f"{', '.join(sorted(_READERS))}."
        )
    return reader(method, config)


def _listed(config: Mapping[str, object], *names: str) -> tuple[str, ...]:
    for name in names:
        value = config.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(map(str, value))
    return ()


def _integer(config: Mapping[str, object], name: str, default: int) -> int:
    value = config.get(name)
    return value if type(value) is int else default


def _fp8(method: str, config: Mapping[str, object]) -> Quantisation:
    block = _listed(config, "weight_block_size")
    scheme = _ONLINE_SCHEMES["fp8"]
    if block:
        rows, columns = map(int, block)
        scheme = Scheme(bits=8, scale_bytes=4.0, block=(rows, columns))
    elif method == "fbgemm_fp8":
        scheme = Scheme(bits=8, scale_bytes=4.0)
    ignored = _listed(config, "modules_to_not_convert", "ignored_layers")
    return Quantisation(method=method, rules=(("Linear", scheme),), ignored=ignored)


def _awq(method: str, config: Mapping[str, object]) -> Quantisation:
    bits = _integer(config, "bits", _integer(config, "w_bit", 4))
    group = _integer(config, "group_size", _integer(config, "q_group_size", 128))
    zero = bits / 8 if config.get("zero_point", True) else 0.0
    scheme = Scheme(bits=bits, scale_bytes=2.0 + zero, group=max(group, 0))
    return Quantisation(
        method=method, rules=(("Linear", scheme),), ignored=_listed(config, "modules_to_not_convert")
    )


def _gptq(method: str, config: Mapping[str, object]) -> Quantisation:
    if config.get("dynamic"):
        raise UnsupportedModelError("GPTQ with special rules for some modules (dynamic) is not supported.")
    bits, group = _integer(config, "bits", 4), _integer(config, "group_size", 128)
    scheme = Scheme(bits=bits, scale_bytes=2.0 + bits / 8, group=max(group, 0), column_bytes=4)
    return Quantisation(
        method=method,
        rules=(("Linear", scheme),),
        ignored=_listed(config, "modules_to_not_convert"),
        head=bool(config.get("lm_head")),
    )


def _mxfp4(method: str, config: Mapping[str, object]) -> Quantisation:
    """Returns the quantisation of gpt-oss, where only the experts are quantised."""
    return Quantisation(method=method, rules=(("experts", _GPT_OSS),), ignored=())


def _bitsandbytes(method: str, config: Mapping[str, object]) -> Quantisation:
    scheme = _NF4 if config.get("load_in_4bit") else Scheme(bits=8, scale_bytes=4.0)
    return Quantisation(
        method=method, rules=(("Linear", scheme),), ignored=_listed(config, "llm_int8_skip_modules")
    )


def _modelopt(method: str, config: Mapping[str, object]) -> Quantisation:
    algorithm = str(config.get("quant_algo"))
    schemes = {"FP8": _ONLINE_SCHEMES["fp8"], "NVFP4": _NVFP4}
    if algorithm not in schemes:
        raise UnsupportedModelError(f"ModelOpt's quantisation {algorithm!r} is not supported.")
    return Quantisation(
        method=method,
        rules=(("Linear", schemes[algorithm]),),
        ignored=_listed(config, "exclude_modules", "ignore"),
        fp8_cache=config.get("kv_cache_quant_algo") == "FP8" or _eight_bits(config),
    )


def _compressed_tensors(method: str, config: Mapping[str, object]) -> Quantisation:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise UnsupportedModelError("compressed-tensors without config_groups is not supported.")
    rules = []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        rules += [(target, _compressed(weights)) for target in _listed(group, "targets")]
    # Rules that name modules come before the rule for all modules.
    rules.sort(key=lambda rule: rule[0] == "Linear")
    return Quantisation(
        method=method,
        rules=tuple(rules),
        ignored=_listed(config, "ignore"),
        fp8_cache=_eight_bits(config),
    )


def _quark(method: str, config: Mapping[str, object]) -> Quantisation:
    """Returns the quantisation of AMD's Quark: rules for modules, and one for all others."""
    modules = config.get("layer_quant_config")
    configs = dict(modules) if isinstance(modules, Mapping) else {}
    configs["Linear"] = config.get("global_quant_config")
    rules = [(target, _quark_scheme(stated)) for target, stated in configs.items()]
    return Quantisation(method=method, rules=tuple(rules), ignored=_listed(config, "exclude"))


def _quark_scheme(config: object) -> Scheme:
    weight = config.get("weight") if isinstance(config, Mapping) else None
    stated = weight if isinstance(weight, Mapping) else {}
    dtype, strategy = str(stated.get("dtype")), stated.get("qscheme")
    if dtype == "fp4" and strategy == "per_group":
        return _MXFP4
    if dtype in ("fp8_e4m3", "int8") and strategy in ("per_tensor", "per_channel"):
        return Scheme(bits=8, scale_bytes=4.0, group=-1 if strategy == "per_tensor" else 0)
    raise UnsupportedModelError(f"Quark's weights of the type {dtype!r} ({strategy}) are not supported.")


def _eight_bits(config: Mapping[str, object]) -> bool:
    """Whether kv_cache_scheme in the config asks for a KV cache of eight bits."""
    scheme = config.get("kv_cache_scheme")
    return isinstance(scheme, Mapping) and scheme.get("num_bits") == 8


def _compressed(weights: Mapping[str, object]) -> Scheme:
    bits, kind = _integer(weights, "num_bits", 0), weights.get("type")
    strategy, group = weights.get("strategy"), _integer(weights, "group_size", 0)
    if bits == 4 and kind == "float":
        return _NVFP4 if group in (0, 16) else _MXFP4
    if bits not in (4, 8):
        raise UnsupportedModelError(f"compressed-tensors with {bits} bits per weight is not supported.")
    symmetric = weights.get("symmetric", True)
    match strategy:
        case "group":
            return Scheme(bits=bits, scale_bytes=2.0 + (0.0 if symmetric else bits / 8), group=group)
        case "channel":
            return Scheme(bits=bits, scale_bytes=4.0 + (0.0 if symmetric else bits / 8))
        case "tensor":
            return Scheme(bits=bits, scale_bytes=4.0, group=-1)
        case "block":
            rows, columns = map(int, _listed(weights, "block_structure") or ("128", "128"))
            return Scheme(bits=bits, scale_bytes=4.0, block=(rows, columns))
    raise UnsupportedModelError(f"compressed-tensors with the strategy {strategy!r} is not supported.")


_READERS = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "quark": _quark,
}
