"""One file a wall: from measured levels to the number of users at which it stands, with bounds.

Knows no other wall, no report and no command."""
