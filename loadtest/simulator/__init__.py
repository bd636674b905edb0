"""A simulation of vLLM: a deterministic engine that runs in virtual time or, behind vLLM's API, in real time.

Knows neither the load test nor its analysis."""
