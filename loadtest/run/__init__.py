"""One run: its plan, the coordinator that leads it, the generators that measure, and the files they write.

Knows no Locust; what Locust asks of a run comes in through `locust_plugin`."""
