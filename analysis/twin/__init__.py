"""The simulated engine fitted to a run, and what it predicts of loads that were never run.

Knows no wall of a measured run and no words."""
