"""How right the answers are, compared with a known truth, a real vLLM or published start-up logs.

Knows nothing of what a measurement costs.
"""
