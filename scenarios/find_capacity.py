"""Searches how many users a server can hold: the people of scenarios/chat.py, at each time as many as tell
most about the answer, within a budget of seconds.

locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless locust -f
scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless --budget-s 300

To search with a workload of your own, import SearchShape into the file of your ChatUser: Locust uses the
shape that it finds in a locustfile.
"""

from loadtest.locust_plugin.search import SearchShape
from scenarios.chat import Chat

__all__ = ["Chat", "SearchShape"]
