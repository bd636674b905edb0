"""Builds small inputs for unit tests: engines, workloads, models, lengths, conversations.

Knows no run folder.
"""
