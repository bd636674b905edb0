"""All code that imports locust, except `loadtest.user`: plans of users, and runs that follow Locust's events.
Knows neither how a request is timed nor how rows are stored."""
