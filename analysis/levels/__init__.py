"""The levels of a run (phases with a constant number of users): their steady windows, figures and doubts.

Uses no walls (limits in users), no model of the engine and no report.
"""
