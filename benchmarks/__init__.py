"""Measures the figures that README.md and docs/ quote, one command each: `python -m benchmarks NAME`.

Knows no test; what tests and benchmarks share is in `testing`.
"""
