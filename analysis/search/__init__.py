"""Where a search goes next and when it stops, from the levels so far.

Knows no Locust; the process that asks and answers is `__main__`."""
