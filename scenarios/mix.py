"""Several classes of users on one server: people who chat, people who search documents, and agents.

    locust -f scenarios/mix.py --host http://127.0.0.1:8000 --headless --levels 10,20,40

The weights in the workload file are the shares of the users, which every level has as nearly as whole users
allow: of 10 users, 6 chat, 3 search and 1 is an agent. Each row names its class.
"""

from pathlib import Path

from loadtest.user import ChatUser


class Mix(ChatUser):
    """A user of one of the classes in the workload file."""

    scenario = "mix"
    workload = Path(__file__).parent / "workloads" / "mix.toml"
