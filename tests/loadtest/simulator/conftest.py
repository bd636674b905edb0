"""One embedded server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from testing.servers.simulated import SimulatedServer, simulated_server


@pytest.fixture(scope="session")
def server() -> Iterator[SimulatedServer]:
    with simulated_server() as running:
        yield running
