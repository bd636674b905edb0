"""Summaries of articles, one after the other, without a person who waits.

    locust -f scenarios/summary.py --host http://127.0.0.1:8000 --headless

scenarios/workloads/long-document.toml has longer ones: `--workload` takes it.
"""

from pathlib import Path

from loadtest.user import ChatUser


class Summary(ChatUser):
    """A program that has one article after the other summarised."""

    scenario = "summary"
    workload = Path(__file__).parent / "workloads" / "summary.toml"
