"""What the leader sees of a run while it goes on: counts of a level, absences of the server, the live line.
Knows neither Locust nor statistics."""
