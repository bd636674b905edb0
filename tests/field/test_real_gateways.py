"""nginx, HAProxy and LiteLLM in front of the embedded server, and llama.cpp.

Skips loudly where they cannot be installed.
"""

import os
import sys
from pathlib import Path

import pytest

from testing.field import real_gateways
from testing.field.case import FieldCase
from testing.field.cases import assert_right, parameters_of
from testing.gateways.environment import GatewayUnavailableError


@pytest.mark.parametrize("one", parameters_of(real_gateways))
def test_the_answer_is_right(one: FieldCase, tmp_path: Path) -> None:
    try:
        assert_right(one, tmp_path)
    except GatewayUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        print(f"NOT RUN AGAINST A REAL GATEWAY: {error}", file=sys.stderr)
        pytest.skip(str(error))
