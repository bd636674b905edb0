"""A real vLLM that loses its core to something else for a while."""

from pathlib import Path

import pytest

from testing.field.cases import MAX_TEST_S, assert_right
from testing.field.observation import starved_server

pytestmark = [pytest.mark.real, pytest.mark.timeout(2 * MAX_TEST_S)]


def test_the_level_is_named_and_held_again(vllm_made: None, tmp_path: Path) -> None:
    """Tried twice: where this machine is busy all the time, no level stands out."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    if not starved_server.judge(first).ok:
        assert_right(starved_server, second)
