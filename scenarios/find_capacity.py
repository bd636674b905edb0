"""Searches for the largest number of users that a server can hold, with the users of scenarios/chat.py.

    locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless
    locust -f scenarios/find_capacity.py --host http://127.0.0.1:8000 --headless --budget-s 300

While the load goes on, the search changes the number of users, each time to the number that tells most about
the answer. It ends when it knows enough, or after `--budget-s` seconds. To search with a workload of your
own, import SearchShape into the file of your ChatUser: Locust uses the shape that it finds in a locustfile.
"""

from loadtest.locust_plugin.search import SearchShape
from scenarios.chat import Chat

__all__ = ["Chat", "SearchShape"]
