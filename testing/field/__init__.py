"""Cases of what real installations do: each starts its servers, runs the user's own commands, and judges.

Knows no test and no benchmark; both run these cases.
"""
