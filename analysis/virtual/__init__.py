"""Simulates users of an engine in virtual time, and computes what a load test would measure of them.

Knows no load test, no measurement and no limit of users."""
