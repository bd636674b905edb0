"""Predicts how many users a deployment would hold, with bands, from config.json and a data sheet.

Knows no measured run, except for the memory of one start-up, which may calibrate the prediction."""
