"""Real gateways and engines for tests and benchmarks: nginx, HAProxy, LiteLLM and llama.cpp.

Knows no test.
"""
