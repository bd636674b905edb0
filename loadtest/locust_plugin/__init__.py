"""Everything that imports locust: shapes of levels and searches, and a run tied to Locust's events.

Knows neither how a request is timed nor how rows are stored."""
