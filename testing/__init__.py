"""What tests and benchmarks share: processes to start, run folders, and services whose truth is known.

Knows neither tests nor benchmarks.
"""
