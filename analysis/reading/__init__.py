"""Run folders, and the result files of other load generators, read into columns of numbers.

Knows no level, no wall and no statistics."""
