"""Confidence intervals for dependent samples, for ratios of two runs, and for the number of users at which a
limit is crossed.

Knows no server, no request and no file."""
