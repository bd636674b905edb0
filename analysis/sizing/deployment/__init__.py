"""Predicts the memory at start-up and the KV-cache pool of a planned deployment.

The log of a real start-up can correct both; workload and latency are not considered.
"""
