"""What real installations do, case by case: the right answer beside ours, one line each.

Knows no statistics; the cases are in `testing.field`.
"""
