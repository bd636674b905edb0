"""Coding agents that work alone: a task is many requests, each with a tool's answer and all that was before.

    locust -f scenarios/agent.py --host http://127.0.0.1:8000 --headless

In the workload file, `steps` are the requests of a task, `tool_tokens` what a tool answers and `tool_s` how
long it takes. scenarios/workloads/coding-agent.toml has agents that work for a person, with longer
histories: `--workload` takes it.
"""

from pathlib import Path

from loadtest.user import ChatUser


class Agent(ChatUser):
    """An agent that works on one task after the other."""

    scenario = "agent"
    workload = Path(__file__).parent / "workloads" / "coding-agent-small.toml"
