"""Predicts how many users a deployment would hold, with bands, from config.json and a data sheet.

It uses nothing measured, except that the memory figures of one start-up may correct the prediction.
"""
