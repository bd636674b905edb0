"""Says how much more load a server in production holds, without loading it.

Does not know how the metrics were read.
"""
