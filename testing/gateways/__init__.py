"""Real gateways, engines and Prometheus for tests and benchmarks.

Knows no test.
"""
