"""Code completion: long prompts, short answers, and editors that ask again at once.

    locust -f scenarios/code.py --host http://127.0.0.1:8000 --headless
    locust -f scenarios/code.py --host http://127.0.0.1:8000 --headless --levels 4,8,16

The source of the lengths has no pauses. A workload file of your own can have them: `think_s` is the time
between two completions of one person.
"""

from pathlib import Path

from loadtest.user import ChatUser


class Code(ChatUser):
    """An editor that asks for a completion."""

    scenario = "code"
    workload = Path(__file__).parent / "workloads" / "code.toml"
