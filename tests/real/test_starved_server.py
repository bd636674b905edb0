"""A real vLLM that loses its core to something else for a while."""

from pathlib import Path

import pytest

from testing.field.cases import MAX_TEST_S, assert_right
from testing.field.observation import starved_server

pytestmark = [pytest.mark.real, pytest.mark.timeout(MAX_TEST_S)]


def test_the_level_is_named_and_held_again(vllm_made: None, tmp_path: Path) -> None:
    assert_right(starved_server, tmp_path)
