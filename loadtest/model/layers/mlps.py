"""Builds the MLPs and experts of a layer as tensors, one builder for each kind. Knows no GPU and no bytes."""

from loadtest.model.layers.family import ConfigKeys, ModelFamily, nemotron_layer
from loadtest.model.layers.tensors import Tensor, column_parallel, row_parallel


def gated_mlp(name: str, hidden: int, width: int, *, bias: bool = False, count: int = 1) -> list[Tensor]:
    """Builds an MLP of three matrices: gate, up and down."""
    return [
        *column_parallel(f"{name}.gate_proj", width, hidden, bias=bias, count=count),
        *column_parallel(f"{name}.up_proj", width, hidden, bias=bias, count=count),
        *row_parallel(f"{name}.down_proj", hidden, width, bias=bias, count=count),
    ]


def plain_mlp(name: str, hidden: int, width: int, *, bias: bool, count: int = 1) -> list[Tensor]:
    """Builds an MLP of two matrices: up and down."""
    return [
        *column_parallel(f"{name}.up_proj", width, hidden, bias=bias, count=count),
        *row_parallel(f"{name}.down_proj", hidden, width, bias=bias, count=count),
    ]


def expert_router(name: str, experts: int, hidden: int, *, bias: bool = False) -> list[Tensor]:
    """Builds the router that chooses experts. Every GPU holds all of it, and it is never quantised."""
    router = [Tensor(name=name, rows=experts, columns=hidden)]
    return [*router, Tensor(name=f"{name}.bias", rows=experts)] if bias else router


def dense_mlp(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds a dense MLP: gated if `family.gated`, else plain. Without a width in the config, it is
    expansion_ratio times the hidden size."""
    expanded = keys.integer("expansion_ratio", default=0) * keys.hidden
    width, bias = keys.integer("intermediate_size", default=expanded or None), keys.bias(family.mlp_bias)
    return (gated_mlp if family.gated else plain_mlp)("mlp", keys.hidden, width, bias=bias)


def halved_mlp(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLP of the first Qwen, whose config states gate and up together as one width."""
    return gated_mlp("mlp", keys.hidden, keys.integer("intermediate_size") // 2)


def mixtral_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a Mixtral layer: only experts, in every layer."""
    experts, hidden = keys.integer("num_local_experts", "num_experts"), keys.hidden
    width = keys.integer("moe_intermediate_size", "intermediate_size")
    bias = keys.flag("use_routing_bias")
    return expert_router("mlp.gate", experts, hidden, bias=bias) + gated_mlp(
        "mlp.experts", hidden, width, count=experts
    )


def qwen_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a Qwen layer. Each decoder_sparse_step-th layer has experts, unless mlp_only_layers
    lists it. All other layers have a dense MLP. A layer with experts also has a shared expert if the config
    states its size."""
    if layer in keys.items("mlp_only_layers") or (layer + 1) % keys.integer("decoder_sparse_step", default=1):
        return dense_mlp(keys, family, layer)
    experts, hidden = keys.integer("num_experts", "num_local_experts"), keys.hidden
    tensors = expert_router("mlp.gate", experts, hidden)
    tensors += gated_mlp("mlp.experts", hidden, keys.integer("moe_intermediate_size"), count=experts)
    shared = keys.integer("shared_expert_intermediate_size", default=0)
    if shared:
        tensors += gated_mlp("mlp.shared_expert", hidden, shared)
        tensors += expert_router("mlp.shared_expert_gate", 1, hidden)
    return tensors


def deepseek_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a DeepSeek layer. The first first_k_dense_replace layers have a dense MLP. From then
    on, each moe_layer_freq-th layer has routed and shared experts, and the others a dense MLP. The router of
    V3 has a correction bias."""
    every = keys.integer("moe_layer_freq", default=1)
    if layer < keys.integer("first_k_dense_replace", default=0) or layer % every:
        return dense_mlp(keys, family, layer)
    experts, hidden = keys.integer("n_routed_experts"), keys.hidden
    width = keys.integer("moe_intermediate_size")
    corrected = keys.get("topk_method") == "noaux_tc" or keys.model_type in _CORRECTED_ROUTERS
    tensors = expert_router("mlp.gate", experts, hidden, bias=corrected)
    tensors += gated_mlp("mlp.experts", hidden, width, count=experts)
    shared = keys.integer("n_shared_experts", default=0)
    return tensors + (gated_mlp("mlp.shared_experts", hidden, width * shared) if shared else [])


_CORRECTED_ROUTERS = {
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "kimi_k2",
}


def llama4_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a Llama 4 layer: routed experts and a shared expert, or a dense MLP. moe_layers
    lists the layers with experts; if absent, each interleave_moe_layer_step-th layer has them."""
    listed, step = keys.items("moe_layers"), keys.integer("interleave_moe_layer_step", default=1)
    hidden, width = keys.hidden, keys.integer("intermediate_size")
    if layer not in listed if listed else (layer + 1) % step:
        return gated_mlp("feed_forward", hidden, keys.integer("intermediate_size_mlp"))
    experts = keys.integer("num_local_experts")
    return [
        *expert_router("feed_forward.router", experts, hidden),
        *gated_mlp("feed_forward.experts", hidden, width, count=experts),
        *gated_mlp("feed_forward.shared_expert", hidden, width),
    ]


def gpt_oss_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a gpt-oss layer: experts with biases, in every layer."""
    experts, hidden, width = keys.integer("num_local_experts"), keys.hidden, keys.integer("intermediate_size")
    return expert_router("mlp.router", experts, hidden, bias=True) + gated_mlp(
        "mlp.experts", hidden, width, bias=True, count=experts
    )


def jamba_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a Jamba layer: experts in one layer of every expert_layer_period, a dense MLP in
    the others."""
    period = keys.integer("expert_layer_period", default=2)
    offset = keys.integer("expert_layer_offset", default=0)
    experts = keys.integer("num_experts", default=16)
    if layer % period != offset or experts == 1:
        return gated_mlp("feed_forward", keys.hidden, keys.integer("intermediate_size"))
    return expert_router("feed_forward.router", experts, keys.hidden) + gated_mlp(
        "feed_forward.experts", keys.hidden, keys.integer("intermediate_size"), count=experts
    )


def granite_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLPs of a Granite layer: experts if the config has any, and a shared MLP if it has one."""
    experts, hidden = keys.integer("num_local_experts", default=0), keys.hidden
    tensors = []
    if experts:
        tensors += expert_router("block_sparse_moe.router", experts, hidden)
        width = keys.integer("intermediate_size")
        tensors += gated_mlp("block_sparse_moe.experts", hidden, width, count=experts)
    shared = keys.integer("shared_intermediate_size", default=0)
    return tensors + (gated_mlp("shared_mlp", hidden, shared) if shared else [])


def nemotron_experts(keys: ConfigKeys, family: ModelFamily, layer: int) -> list[Tensor]:
    """Builds the MLP of a Nemotron-H layer: "-" in the layers' pattern stands for a dense one, "E" for plain
    experts (in a smaller latent space if the config has one) and a shared expert."""
    kind = nemotron_layer(keys, layer)
    if kind == "-":
        return dense_mlp(keys, family, layer)
    if kind != "E":
        return []
    experts, hidden = keys.integer("n_routed_experts"), keys.hidden
    latent = keys.integer("moe_latent_size", default=0)
    tensors = expert_router("mixer.gate", experts, hidden, bias=True)
    if latent:
        tensors += column_parallel("mixer.fc1_latent_proj", latent, hidden, shards=1)
        tensors += column_parallel("mixer.fc2_latent_proj", hidden, latent, shards=1)
    width, bias = keys.integer("moe_intermediate_size"), keys.bias(family.mlp_bias)
    tensors += plain_mlp("mixer.experts", latent or hidden, width, bias=bias, count=experts)
    shared = keys.integer("moe_shared_expert_intermediate_size", default=0)
    return tensors + (plain_mlp("mixer.shared_experts", hidden, shared, bias=bias) if shared else [])
