"""How the KV-cache pool fills: blocks of one request, shortage with many users, eviction, and a simulation.

Knows no other limit of a server, no confidence interval and no report.
"""
