"""Makes run folders and results of other tools, from given rows or from the engine in virtual time.

Knows nothing of what tests assert about them.
"""
