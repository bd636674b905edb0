"""What a model takes on a GPU (weights, KV cache, start-up, FLOPs), from its config.json and data sheets.

Knows no server, no workload and no measurement."""
