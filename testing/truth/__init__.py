"""Services in virtual time whose maximum of users is known, and methods that look for it.

Knows no real server.
"""
