"""Layers of a model: their tensors and KV caches by family, for attention, recurrent, MLP and vision parts.

Knows no GPU and no bytes."""
