"""People who use a simulated engine in virtual time, and what they and the server see.

Knows no run, no measurement and no wall."""
