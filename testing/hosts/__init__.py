"""Several machines on one, as network namespaces, and a server that they reach.

Knows no test.
"""
