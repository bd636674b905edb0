"""Locustfiles: what users ask, and how long they think. They know neither how a request is measured nor how
many users a server holds."""
