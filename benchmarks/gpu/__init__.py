"""Sizing's step times against published measurements of vLLM on GPUs: fit, leaving out, and peers. Knows no
load test."""
