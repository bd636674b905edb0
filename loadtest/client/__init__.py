"""Sends one streamed chat request, notes when its bytes arrive, and turns it into one row.

Knows no Locust, no other request and no statistics."""
