"""scenarios/chat.py without its staggered starts: all users ask at the same moment.

The scripted server answers all of them alike, so they stay in step: the hardest case for exact times.
"""

from loadtest.user import ChatUser


class LockstepChat(ChatUser):
    """A user who asks at once when started, and again as soon as the answer has ended."""

    scenario = "lockstep"

    def wait_time(self) -> float:
        super().wait_time()
        return 0.0
