"""How exact and how fast the load test, the embedded server and the analysis are, beside other tools.

Knows nothing of how right the answers are.
"""
