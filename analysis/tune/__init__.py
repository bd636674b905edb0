"""Finds which of vLLM's flags would hold more users of a measured workload, by the engine fitted to the run.

What a change does to the answers' quality, to start-up memory or to several GPUs is not known here.
"""
