"""What the server and its GPU say of themselves: before the load (preflight) and beside it (scrapes).

Knows no Locust, no users and no statistics."""
