"""Traffic as people have it, over real sockets and processes."""

from pathlib import Path

import pytest

from testing.field import traffic
from testing.field.case import FieldCase
from testing.field.cases import assert_right, parameters_of


@pytest.mark.parametrize("one", parameters_of(traffic))
def test_the_answer_is_right(one: FieldCase, tmp_path: Path) -> None:
    assert_right(one, tmp_path)
