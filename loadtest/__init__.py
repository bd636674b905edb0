"""Generates load, measures, writes rows. Knows no statistics."""
