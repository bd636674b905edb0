"""Compares the twin with a real vLLM: both get the same traffic, and what-ifs are predicted first.

Knows no virtual deployment.
"""
