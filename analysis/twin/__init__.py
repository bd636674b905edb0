"""Fits a simulated copy of the server (the twin) to a run, and predicts loads that were never run.

Reports are written, and levels and limits (walls) are defined, in other folders.
"""
