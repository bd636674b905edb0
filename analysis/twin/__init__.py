"""The simulated engine fitted to a run, and what it predicts of loads that were never run.

Knows how levels are measured and walls defined only through other folders, and no words."""
