"""Users of a simulated engine in virtual time, and the figures that they and the server would report.

Knows no load test, no measurement and no wall."""
