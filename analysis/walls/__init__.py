"""A module for each wall: from measured levels to the number of users at which the wall lies, with bounds.

No wall knows another wall, a report or a command.
"""
