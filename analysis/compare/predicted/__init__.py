"""Holds a load test against the sizing that was printed before the deployment, figure by figure.

How the sizing predicted them is not known here: only its JSON is read.
"""
