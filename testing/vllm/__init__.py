"""A real vLLM without a GPU, with a tiny model, and the load test and its analysis beside it.

Knows no test; is made where it is missing.
"""
