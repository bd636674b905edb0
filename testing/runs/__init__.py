"""Run folders and results of other tools, written row by row or played in virtual time.

Knows nothing of what is asserted of them.
"""
