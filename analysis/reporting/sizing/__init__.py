"""Prints sizings and purchases as text, Markdown or JSON.

It computes nothing: the answers come from elsewhere.
"""
