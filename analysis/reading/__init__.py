"""Run folders, and the result files of other load generators, read into columns.

Knows no level, no wall and no statistics."""
