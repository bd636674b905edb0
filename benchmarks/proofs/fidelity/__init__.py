"""The twin beside a real vLLM: the same traffic into both, and what-ifs predicted first.

Knows no virtual deployment.
"""
