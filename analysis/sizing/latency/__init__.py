"""Predicts TTFT and TPOT of a planned deployment under a load. Knows no memory wall and no files."""
