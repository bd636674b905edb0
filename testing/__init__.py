"""Helpers that tests and benchmarks share: processes, run folders, and services whose true maximum is known.

Knows neither tests nor benchmarks.
"""
