"""What Locust's own statistics, console and web page show of a request. The rows of a run do not depend on
these statistics."""

import logging
from argparse import Namespace

from locust.env import Environment

from loadtest.record import Outcome, RequestRecord


class RequestFailed(Exception):  # noqa: N818 (the words that Locust's statistics show)
    """The error of a failed request in Locust's statistics, which show this class's name."""


def tell_locust(environment: Environment, record: RequestRecord) -> None:
    """Counts one request in Locust's statistics. Cancelled requests and empty answers do not count as
    failures."""
    status = f" {record.http_status}" if record.outcome is Outcome.HTTP_ERROR else ""
    failed = record.outcome not in (Outcome.OK, Outcome.EMPTY, Outcome.CANCELLED)
    environment.events.request.fire(
        request_type="SSE",
        name=record.scenario,
        response_time=(record.end_s - (record.sent_s or 0.0)) * 1000,
        response_length=0,  # Locust shows it as bytes, which are not counted
        exception=RequestFailed(f"{record.outcome}{status}") if failed else None,
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
