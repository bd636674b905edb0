"""How many users a deployment holds: the walls joined into one answer with an interval, options and warnings.

Does not know how a single wall is placed, and knows no words.
"""
