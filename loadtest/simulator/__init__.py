"""An embedded vLLM: a deterministic engine, run in virtual time or in real time behind vLLM's API.

Knows neither the load test nor its analysis."""
