"""How a KV pool fills: blocks of one request, pressure of many users, eviction of histories, and a replay.

Knows no wall, no interval of an answer and no report.
"""
