"""Reads rows, does the maths, recommends. Knows no Locust."""
