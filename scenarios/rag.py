"""People who ask about documents: each question brings the passages that a search has found.

    locust -f scenarios/rag.py --host http://127.0.0.1:8000 --headless

The workload file says how long everything is, and where these lengths are from. To change them, copy it and
give your copy to `--workload`. For a search of the most users, run scenarios/find_capacity.py with
`--workload` and the same file.
"""

from pathlib import Path

from loadtest.user import ChatUser


class Rag(ChatUser):
    """A person who asks a question about documents, and at times another one after it."""

    scenario = "rag"
    workload = Path(__file__).parent / "workloads" / "rag.toml"
