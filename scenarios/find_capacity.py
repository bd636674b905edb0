"""The search: how many users can this server hold? The people of scenarios/chat.py, as many of them
as tell most about the answer, within a budget of seconds.

    locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless
    locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless --budget-s 300

For a workload of your own, import SearchShape into the file of your ChatUser: Locust takes the shape that it
finds in a locustfile.
"""

from loadtest.locust_plugin.search import SearchShape
from scenarios.chat import Chat

__all__ = ["Chat", "SearchShape"]
