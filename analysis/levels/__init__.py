"""A run's levels: the steady window of each, what was measured in it, and whether it can be trusted.

Knows no wall, no model of the engine and no report."""
