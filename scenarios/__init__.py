"""Locustfiles: who asks what, with which think time. They know neither how a request is measured nor how many
users a server holds."""
