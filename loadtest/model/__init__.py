"""A model on a GPU in bytes and FLOPs: weights, KV cache and start-up, from config.json and data sheets.

Knows no server, no workload and no measurement."""
