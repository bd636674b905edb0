"""What `make demo` and `make compare` run: the commands of a normal user, against the embedded (simulated)
server. Knows nothing of how these commands measure or analyse."""
