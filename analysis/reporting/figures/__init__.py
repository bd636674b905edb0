"""Figures of every report, drawn with matplotlib, which only this folder imports.

Knows no words of the reports around them."""
