"""Streaming chat: people who ask, read the answer, think, and ask again.

    locust -f scenarios/chat.py --host http://127.0.0.1:8000 --headless
    locust -f scenarios/chat.py --host http://127.0.0.1:8000 --headless --levels 1,2,4,8,16 --think-s exp:20
    locust -f scenarios/chat.py --host http://127.0.0.1:8000 --web-host 127.0.0.1

How long questions and answers are, how many turns a conversation has, how long people think and which levels
are held are settings: `python -m loadtest.settings` lists them. scenarios/find_capacity.py chooses the levels
itself. For a workload that settings cannot express, subclass ChatUser in a file
of your own, as here, and override `wait_time` or `ask`.
"""

from loadtest.user import ChatUser


class Chat(ChatUser):
    """One person in a conversation."""

    scenario = "chat"
