"""A planned deployment: its memory by start-up, its KV pool with a band, and what a start-up's log corrects.

Knows no workload and no latency."""
