"""What pooled runs tell together: request lengths, pauses, think time, step time and the server's KV gauge.

Uses no walls (limits in users) and no simulated engine.
"""
