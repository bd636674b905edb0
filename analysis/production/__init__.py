"""Reads what a server in production said of itself: its metrics over time, from Prometheus or saved pages.

Sends no request to the server, and does not know what is printed.
"""
