"""Compares two runs: their figures, whether these differ beyond chance, and the gate for CI.

Knows no words; `analysis.capacity` judges the levels."""
