"""One file a wall: from measured levels to the number of users at which it stands, with bounds.

A wall knows no other wall; none knows a report or a command."""
