"""Limits up to which the load generator's time stamps are trusted, while a test runs and afterwards."""

LAG_FLOOR_S = 0.005
"""Mean lag of the event loop, in seconds, up to which time stamps are always trusted."""
LAG_SHARE = 0.1
"""Share of the median time per output token up to which a larger lag is trusted as well."""
CPU_LIMIT = 0.85
"""Largest share of a CPU core that one process of the load generator may use."""
