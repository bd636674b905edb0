"""All code that imports locust, except `loadtest.user`: it plans users and leads runs on Locust's events.
Knows neither how a request is timed nor how rows are stored."""
