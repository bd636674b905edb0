"""Servers that tests and benchmarks talk to over real sockets, from the embedded one to given bytes.

Knows no test.
"""
