"""Searches for the largest number of users that a server can hold, with the users of scenarios/chat.py.

    locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless
    locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless --budget-s 300

The search changes the number of users under load. Each time it chooses the number whose measurement tells
most about the capacity. It ends when the answer is certain enough, or after `--budget-s` seconds. To search
with a workload of your own, import SearchShape into the locustfile that defines your ChatUser: Locust uses
the load shape that it finds there.
"""

from loadtest.locust_plugin.search import SearchShape
from scenarios.chat import Chat

__all__ = ["Chat", "SearchShape"]
