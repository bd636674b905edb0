"""Prints and writes what is known of a server in production: its workload, and its headroom.

The maths is in other folders.
"""
