"""Failed requests: their classes, what causes them, and the limit of a gateway that refuses them.

Knows no walls (limits in users) and no report.
"""
