"""How right the answers are: held against a known truth, a real vLLM, or published start-ups.

Knows nothing of what it costs to measure.
"""
