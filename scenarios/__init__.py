"""Locustfiles: which workload, which think time."""
