"""Fits the simulated engine to a run, and predicts loads that were never run.

Knows no words, and no definition of levels and walls: other folders have those."""
