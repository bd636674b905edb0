"""Prints what follows from a load test: whether it supports a sizing, and which flags would hold more users.

The maths is in other folders.
"""
