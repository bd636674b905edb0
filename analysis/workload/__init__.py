"""Makes a workload for the load test out of what a server in production counted.

Does not know how the metrics were read.
"""
