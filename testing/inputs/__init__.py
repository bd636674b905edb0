"""Builds small inputs for unit tests: engines, workloads, models, lengths.

Knows no run folder.
"""
