"""What comparable runs say together: lengths, pauses, think time, step time, and the server's own gauge.

Knows no wall and no simulated engine."""
