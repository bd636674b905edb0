"""Servers on real sockets for tests and benchmarks: embedded, scripted, and one that sends given bytes.

Knows no test.
"""
