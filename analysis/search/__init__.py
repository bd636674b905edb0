"""Chooses the next level of a search for the limit, or stops it, from the levels measured so far.

Knows no Locust; `__main__` is the process that the load test asks."""
