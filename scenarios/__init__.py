"""Locustfiles: what users ask, and how long they think. They do not know how a request is measured or how
many users a server holds."""
