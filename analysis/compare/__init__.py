"""Compares two runs: their figures, whether these differ beyond chance, and the gate for CI.

`analysis.capacity` judges the levels, and `analysis.reporting` prints the result."""
