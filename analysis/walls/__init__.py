"""One module for each wall (a limit of the server): it computes the number of users at the wall, with bounds.

A wall's module uses no other wall, no report and no command.
"""
