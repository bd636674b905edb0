"""Counts the parameters of vision towers, which multimodal models have beside the text part. Knows no GPU."""

from collections.abc import Callable, Mapping

from loadtest.model.layers.family import ConfigKeys
from loadtest.model.layers.tensors import ANY_SHARDS, Tensor


def vision_tower(config: Mapping[str, object], text: ConfigKeys) -> tuple[list[Tensor], tuple[str, ...]]:
    """Returns a list with the vision tower as one tensor, and a tuple with the names of parts not counted.

    If the tower's parameters cannot be counted, the list is empty and the tuple names the tower. Both are
    empty if the model has no tower.
    """
    nested = config.get("vision_config")
    heard = ("the audio tower",) if isinstance(config.get("audio_config"), Mapping) else ()
    if not isinstance(nested, Mapping):
        return [], heard
    kind = str(config.get("model_type"))
    if kind == "llava" and nested.get("model_type") == "pixtral":
        kind = "pixtral"
    counter = _TOWERS.get(kind)
    count = counter(ConfigKeys(nested, {}, _ALIASES), text.hidden) if counter else None
    if count is None:
        return [], ("the vision tower", *heard)
    return [Tensor(name="vision_tower", rows=count, shards=ANY_SHARDS)], heard


_ALIASES = {
    "hidden_size": "vt_hidden_size",
    "intermediate_size": "vt_intermediate_size",
    "num_hidden_layers": "vt_num_hidden_layers",
}
"""Names of keys in the vision_config of Kimi K2.5."""


def _siglip(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of Gemma 3's tower: SigLIP and one projection."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    patch, image = keys.integer("patch_size"), keys.integer("image_size")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    outside = (3 * patch**2 + 1) * hidden + (image // patch) ** 2 * hidden + 2 * hidden
    return layers * layer + outside + hidden * text_hidden + hidden


def _pixtral(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of Mistral 3's tower: Pixtral, a patch merger and two projections."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    layer = 4 * hidden**2 + 3 * hidden * width + 2 * hidden
    outside = 3 * keys.integer("patch_size") ** 2 * hidden + hidden
    return layers * layer + outside + 4 * hidden**2 + hidden + (hidden + text_hidden) * text_hidden


def _pixtral_alone(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of Pixtral 12B's tower, which has two projections and no merger of patches."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    layer = 4 * hidden**2 + 3 * hidden * width + 2 * hidden
    outside = 3 * keys.integer("patch_size") ** 2 * hidden + hidden
    return layers * layer + outside + (hidden + 1) * text_hidden + (text_hidden + 1) * text_hidden


def _moonvit(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of the tower of Kimi VL and K2.5: MoonViT, two projections of 2 x 2 patches."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    positions = keys.integer("init_pos_emb_height", default=64) * keys.integer(
        "init_pos_emb_width", default=64
    )
    outside = (3 * keys.integer("patch_size", default=14) ** 2 + 1 + positions) * hidden + 2 * hidden
    wide = 4 * hidden
    return layers * layer + outside + 2 * hidden + wide * (wide + 1) + (wide + 1) * text_hidden


def _clip(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of LLaVA's tower: CLIP and two projections."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    patch, image = keys.integer("patch_size"), keys.integer("image_size")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    outside = 3 * patch**2 * hidden + ((image // patch) ** 2 + 2) * hidden + 4 * hidden
    return layers * layer + outside + (hidden + 1) * text_hidden + (text_hidden + 1) * text_hidden


def _llama4_tower(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of Llama 4's tower, with two layers that merge patches and one projection."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("num_hidden_layers")
    patch, image = keys.integer("patch_size"), keys.integer("image_size")
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    outside = 3 * patch**2 * hidden + ((image // patch) ** 2 + 2) * hidden + 4 * hidden
    wide, inner = keys.integer("projector_input_dim"), keys.integer("projector_output_dim")
    gather = keys.integer("intermediate_size") * wide + inner**2
    return layers * layer + outside + gather + keys.integer("vision_output_dim") * text_hidden


def _qwen2_tower(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of Qwen2-VL's tower, which has plain MLPs and a merger of 2 x 2 patches."""
    hidden, layers = keys.integer("embed_dim"), keys.integer("depth")
    width = keys.integer("mlp_ratio", default=4) * hidden
    patch = 3 * keys.integer("temporal_patch_size", default=2) * keys.integer("patch_size") ** 2
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    wide = hidden * keys.integer("spatial_merge_size", default=2) ** 2
    merger = wide * (wide + 1) + (wide + 1) * keys.integer("hidden_size", default=text_hidden) + 2 * hidden
    return layers * layer + patch * hidden + merger


def _qwen25_tower(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of Qwen2.5-VL's tower, which has gated MLPs and a merger of 2 x 2 patches."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("depth")
    patch = 3 * keys.integer("temporal_patch_size", default=2) * keys.integer("patch_size") ** 2
    layer = 4 * hidden * (hidden + 1) + 3 * hidden * width + 2 * width + hidden + 2 * hidden
    wide = hidden * keys.integer("spatial_merge_size") ** 2
    merger = wide * (wide + 1) + (wide + 1) * keys.integer("out_hidden_size", default=text_hidden)
    return layers * layer + patch * hidden + hidden + merger


def _qwen3_tower(keys: ConfigKeys, text_hidden: int) -> int:
    """Counts the parameters of the tower of Qwen3-VL and Qwen3.5, with mergers of 2 x 2 patches."""
    hidden, width, layers = keys.hidden, keys.integer("intermediate_size"), keys.integer("depth")
    patch = (
        keys.integer("in_channels") * keys.integer("temporal_patch_size") * keys.integer("patch_size") ** 2
    )
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * width + width + hidden + 4 * hidden
    wide = hidden * keys.integer("spatial_merge_size") ** 2
    merger = wide * (wide + 1) + (wide + 1) * keys.integer("out_hidden_size", default=text_hidden)
    deep = len(keys.items("deepstack_visual_indexes"))
    outside = (patch + 1) * hidden + keys.integer("num_position_embeddings") * hidden
    return layers * layer + outside + merger + 2 * hidden + deep * (merger + 2 * wide)


_TOWERS: dict[str, Callable[[ConfigKeys, int], int]] = {
    "gemma3": _siglip,
    "mistral3": _pixtral,
    "pixtral": _pixtral_alone,
    "kimi_vl": _moonvit,
    "kimi_k25": _moonvit,
    "llava": _clip,
    "llava_next": _clip,
    "llama4": _llama4_tower,
    "qwen2_vl": _qwen2_tower,
    "qwen2_5_vl": _qwen25_tower,
    "qwen3_vl": _qwen3_tower,
    "qwen3_vl_moe": _qwen3_tower,
    "qwen3_5": _qwen3_tower,
    "qwen3_5_moe": _qwen3_tower,
}
