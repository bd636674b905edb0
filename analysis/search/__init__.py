"""Where a search goes next and when it stops, from the rows so far.

Knows no Locust; it answers looks on standard input with advice on standard output."""
