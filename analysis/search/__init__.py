"""Judges a run in progress: whether a level is trusted, and where a search goes next or stops.

Knows no Locust; `__main__` is the process that the load test asks."""
