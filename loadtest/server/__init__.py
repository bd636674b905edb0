"""What the server and its GPUs report about themselves, before the load (preflight) and during it (scrapes).

Knows no Locust, no users and no statistics."""
