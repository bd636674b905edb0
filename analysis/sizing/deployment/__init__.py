"""Predicts the memory at start-up and the KV pool of a planned deployment; a start-up's log corrects both.

Knows no workload and no latency.
"""
