"""All cases, in the order of the table, and how tests run them."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.mark import ParameterSet

from testing.field import (
    absence,
    machines,
    observation,
    overload,
    real_gateways,
    refusals,
    streams,
    traffic,
)
from testing.field.case import FieldCase

MODULES = (overload, refusals, absence, streams, observation, traffic, machines, real_gateways)


def cases_of(module: ModuleType) -> list[FieldCase]:
    """Returns the cases of a module, in the order of their definition."""
    return [value for value in vars(module).values() if isinstance(value, FieldCase)]


ALL_CASES = [one for module in MODULES for one in cases_of(module)]


def parameters_of(module: ModuleType) -> Iterator[ParameterSet]:
    """Yields the cases of a module as parameters of a test. Those that take long are marked `real`."""
    for one in cases_of(module):
        marks = [pytest.mark.real, pytest.mark.timeout(400)] if one.long else []
        yield pytest.param(one, id=one.name, marks=marks)


def assert_right(one: FieldCase, folder: Path) -> None:
    """Runs a case in an empty folder. Raises AssertionError if it is wrong, and says what is right."""
    found = one.judge(folder)
    assert found.ok, f"{one.title}: right is: {found.right}. Ours: {found.ours}"
