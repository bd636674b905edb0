"""One vLLM for each module, started as the module's `SERVER` says. Skips loudly where none can run."""

import os
import sys
from collections.abc import Iterator

import pytest

from testing.processes import session_members
from testing.vllm.environment import VllmUnavailableError, prepare
from testing.vllm.server import Vllm, start_vllm

_SKIPPED = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def vllm_made(pytestconfig: pytest.Config) -> None:
    """The environment and the model. Where they cannot be had: a failure under CI=true, else a loud skip."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            print(file=sys.stderr)
            prepare()
    except VllmUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"No test ran against a real vLLM. {error}", pytrace=False)
        pytestconfig.stash[_SKIPPED] = str(error)
        pytest.skip(str(error))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if reason := config.stash.get(_SKIPPED, None):
        terminalreporter.section("THE TESTS AGAINST A REAL vLLM WERE SKIPPED", red=True, bold=True)
        terminalreporter.line(reason)


@pytest.fixture(scope="module")
def vllm(
    request: pytest.FixtureRequest, vllm_made: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vllm]:
    """The module's server. When it ends, nothing of it may be left running."""
    with start_vllm(**request.module.SERVER, log=tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server
    assert session_members(server.pid) == []
