"""What runs that may be pooled tell together: lengths, pauses, think time, step time, the server's gauge.

Knows no wall and no simulated engine.
"""
