"""What Locust's own statistics, console and web page show of a request. The rows of a run do not depend on
these statistics."""

import logging
from argparse import Namespace

from locust.env import Environment

from loadtest.record import RequestRecord, failure_kind, has_failed


class RequestFailed(Exception):  # noqa: N818 (the words that Locust's statistics show)
    """The error of a failed request in Locust's statistics, which show this class's name."""


def tell_locust(environment: Environment, record: RequestRecord) -> None:
    """Counts one request in Locust's statistics. The same requests count as failures as in the live line and
    the report, under the same names."""
    kind = failure_kind(record.outcome, record.http_status)
    environment.events.request.fire(
        request_type="SSE",
        name=record.scenario,
        response_time=(record.end_s - (record.sent_s or 0.0)) * 1000,
        response_length=0,  # Locust shows it as bytes, which are not counted
        exception=RequestFailed(kind) if has_failed(record.outcome) else None,
        context={},
    )


def show_only_summary(options: Namespace | None) -> None:
    """Switches off Locust's regular table, because the live line replaces it. Keeps the table if
    `--print-stats` is given."""
    if options is not None and not options.print_stats:
        options.only_summary = True


def hide_statistics() -> None:
    """Keeps Locust from printing empty tables when a test ends before it has begun."""
    logging.getLogger("locust.stats_logger").disabled = True
