"""Runs a real vLLM with a tiny model on the CPU, and the load test and the analysis against it.

Knows no test; the environment is installed if it is missing.
"""
