"""Services in virtual time whose maximum number of users is known, and methods to find that maximum.

Knows no real server.
"""
