"""What imports locust, apart from `loadtest.user`: plans of users, and a run tied to Locust's events. Knows
neither how a request is timed nor how rows are stored."""
