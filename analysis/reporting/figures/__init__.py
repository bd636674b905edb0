"""Draws the figures of all reports with matplotlib, which only this folder imports.

Knows no words of the reports."""
