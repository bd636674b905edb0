"""A plan of levels, without a server. In a process of its own, because locust patches sockets."""

import subprocess
import sys

from testing.processes import ROOT

PROGRAM = """
import time
from types import SimpleNamespace
from unittest.mock import Mock
from loadtest.locust_plugin import levels
from loadtest.locust_plugin.levels import LevelShape
from loadtest.record import UserClass

levels.Advisor = Mock()
level = SimpleNamespace(users=2, start_unix_s=time.time(), far_past_wall=lambda: None)
settings = SimpleNamespace(
    levels=(2, 2, 4, 2), level_s=100.0, settle_s=5.0, open_loop=False, request_timeout_s=1,
    classes=[UserClass(name="", prompt_tokens="9", output_tokens="9")],
)
coordinator = SimpleNamespace(settings=settings, level=level, folder=None, sessions=None)
shape = LevelShape()
shape.leader = Mock()
shape.leader.options = SimpleNamespace(users=None, spawn_rate=None, run_time_s=None, headless=True)
shape._announce = Mock()
wanted = shape._begin(coordinator)
while wanted is not None:
    print(round(shape._left_s(coordinator), -1))
    wanted = shape._next(coordinator, level)
"""


def test_the_time_left_counts_a_level_that_repeats() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert [float(line) for line in shown.split()] == [400, 300, 200, 100]
