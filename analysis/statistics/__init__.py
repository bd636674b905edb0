"""Intervals for samples that depend on each other, ratios of two runs, and crossings of a limit.

Knows no server, no request and no file."""
