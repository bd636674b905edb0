"""Small inputs for single rooms of the code: engines, workloads, models, lengths.

Knows no run folder.
"""
