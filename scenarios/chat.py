"""Streaming chat: people who ask, read the answer, think, and ask again.

    locust -f scenarios/chat.py --host http://127.0.0.1:8000 --headless
    locust -f scenarios/chat.py --host http://127.0.0.1:8000 --headless --levels 1,2,4,8,16 --think-s exp:20
    locust -f scenarios/chat.py --host http://127.0.0.1:8000 --web-host 127.0.0.1

Settings decide the length of questions and answers, the turns of a conversation, the think time and the
levels (numbers of users held for a while). `python -m loadtest.settings` lists all settings.
scenarios/find_capacity.py chooses the levels itself. For a workload that settings cannot express, subclass
ChatUser in a file of your own, as here, and override `wait_time` or `ask`.
"""

from loadtest.user import ChatUser


class Chat(ChatUser):
    """A simulated person who has conversations with the model."""

    scenario = "chat"
