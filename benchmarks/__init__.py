"""The figures that README.md and docs/ quote, one command each: `python -m benchmarks NAME`.

Knows no test; what both need is in `testing`.
"""
