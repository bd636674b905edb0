"""How many users: the walls joined into one answer with an interval, options and warnings.

Knows how no single wall is placed, and no words."""
