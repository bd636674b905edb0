"""Before deployment: from config.json and a data sheet to users, with bands.

Knows no run but a start-up's log or run.json that calibrates it."""
