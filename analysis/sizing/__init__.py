"""How many users a deployment would hold, predicted with bands from config.json and a data sheet.

Knows no measured run, except a start-up's log or run.json that calibrates the prediction."""
