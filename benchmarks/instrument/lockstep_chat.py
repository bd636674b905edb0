"""scenarios/chat.py without its staggered starts: all users ask at once, and since the scripted server
answers all of them alike, they stay in step. The hardest case for exact times."""

from loadtest.user import ChatUser


class LockstepChat(ChatUser):
    """Asks as soon as it is started, and as soon as it has its answer."""

    scenario = "lockstep"

    def wait_time(self) -> float:
        super().wait_time()
        return 0.0
