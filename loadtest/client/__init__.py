"""One streamed chat request: sent, timed byte by byte, and turned into one row.

Knows no Locust, no other request and no statistics."""
