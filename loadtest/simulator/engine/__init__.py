"""The simulated engine: its configuration, requests, block pool and scheduler, one step after the other.

Knows no time but what its driver passes in, no text and no HTTP."""
