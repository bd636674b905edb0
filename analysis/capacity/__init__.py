"""Joins the walls (limits) of a deployment into one answer: its users, an interval, options and warnings.

Does not know how the place of a single wall is computed, and writes no sentences for people.
"""
