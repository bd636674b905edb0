"""What `make demo` and `make compare` run: the user's own commands, against the embedded server. Knows
nothing of how they measure or analyse."""
