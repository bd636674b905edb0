"""How exact and how fast the load test, the embedded server and the analysis are, compared with other tools.

Knows nothing of how right the answers are.
"""
