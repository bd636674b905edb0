"""Types of the answers: capacity.json, compare.json, and the JSON of sizing and the twin.

Knows no mathematics and no words.
"""
