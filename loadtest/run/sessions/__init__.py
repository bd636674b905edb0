"""Replay of recorded sessions in a run: the leader hands them out, and a process plays them. Knows neither
Locust nor the formats of files."""
