"""Servers and gateways as people have them, over real sockets and processes: each case has the right answer.

A case of a real gateway is skipped, loudly, where that cannot be installed; in CI it fails.
"""

import os
import sys
from pathlib import Path

import pytest

from testing.field.case import FieldCase
from testing.field.cases import ALL_CASES, MAX_TEST_S, assert_right
from testing.gateways.environment import GatewayUnavailableError


@pytest.mark.timeout(MAX_TEST_S)
@pytest.mark.parametrize("one", [pytest.param(one, id=one.name) for one in ALL_CASES if one.tested])
def test_the_answer_is_right(one: FieldCase, tmp_path: Path) -> None:
    try:
        assert_right(one, tmp_path)
    except GatewayUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        print(f"NOT RUN AGAINST A REAL GATEWAY: {error}", file=sys.stderr)
        pytest.skip(str(error))
