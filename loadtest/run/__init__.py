"""One run: the coordinator that leads it, the generators that measure, their messages and the files they
write. Knows no Locust; what Locust asks of a run comes in through `locust_plugin`."""
