"""Builds the parts of a model (attention, recurrent, MLP, vision) as tensors and KV caches, for each family.

Knows no GPU and no bytes."""
