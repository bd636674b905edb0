"""The simulated engine: its configuration, requests, block pool and step-by-step scheduler.

Knows no text, no HTTP and no clock; its driver passes in the time."""
