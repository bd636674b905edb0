"""Simulates several machines on one, as network namespaces, with a server that all of them reach.

Knows no test.
"""
