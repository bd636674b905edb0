"""The order of the rooms, and what each may import, even indirectly.

Importing locust patches the process, so a leak would change how the analysis runs; importing matplotlib in a
load generator would cost it memory and start-up time.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from testing.processes import ROOT, clean_environment

PACKAGES = ("loadtest", "analysis", "scenarios", "testing", "benchmarks", "tests")
ORDER = (
    ("loadtest.units", "loadtest.clock", "loadtest.errors", "loadtest.record", "loadtest.lateness_limits"),
    ("loadtest.credentials",),
    ("loadtest.workload", "loadtest.model"),
    ("loadtest.settings", "loadtest.simulator"),
    ("loadtest.client",),
    ("loadtest.server",),
    ("loadtest.run",),
    ("loadtest.locust_plugin",),
    ("loadtest.user",),
    ("scenarios",),
    ("analysis.interruption", "analysis.notes", "analysis.statistics"),
    ("analysis.reading",),
    ("analysis.levels",),
    ("analysis.evidence",),
    ("analysis.virtual",),
    ("analysis.memory",),
    ("analysis.walls",),
    ("analysis.answers",),
    ("analysis.reporting",),
    ("analysis.cli",),
    ("analysis.capacity",),
    ("analysis.compare", "analysis.search", "analysis.sizing", "analysis.twin"),
    ("analysis.production",),
    ("analysis.tune", "analysis.workload", "analysis.headroom"),
    ("testing",),
    ("benchmarks", "tests"),
)
"""Rooms from the ground up: a room may import those of earlier lines, and none of its own line."""
STRANGERS = {
    "analysis": (
        "loadtest.client",
        "loadtest.locust_plugin",
        "loadtest.settings",
        "loadtest.user",
        "scenarios",
    ),
}
"""Rooms further down that a package must not import all the same: load test and analysis meet in files."""

LOCUST = {"locust", "gevent"}
SCIENCE = {"scipy", "matplotlib"}
WEB = {"aiohttp", "uvloop"}
PAGES = {"matplotlib", "jinja2", "rich"}
PURE = LOCUST | SCIENCE | WEB | PAGES | {"numpy", "pydantic"}
FORBIDDEN = {
    "loadtest.record": PURE,
    "loadtest.credentials": PURE,
    "loadtest.workload": PURE,
    "loadtest.model": PURE,
    "loadtest.client.sse": PURE,
    "loadtest.run.live": PURE,
    "loadtest.server.vllm": PURE,
    "loadtest.simulator.engine": LOCUST | SCIENCE | WEB,
    "loadtest.simulator.virtual": LOCUST | SCIENCE | WEB,
    "loadtest.simulator": LOCUST | SCIENCE,
    "loadtest.client": LOCUST | SCIENCE | {"numpy"},
    "loadtest.server": LOCUST | SCIENCE | {"numpy"},
    "loadtest.run.sink": LOCUST | SCIENCE | {"numpy"},
    "loadtest.run.shipping": LOCUST | SCIENCE | {"numpy"},
    "loadtest.run": {"locust", "analysis", "numpy"} | SCIENCE,
    "loadtest.locust_plugin": {"analysis", "numpy"} | SCIENCE,
    "loadtest.user": {"analysis", "numpy"} | SCIENCE,
    "scenarios.chat": {"analysis", "numpy"} | SCIENCE,
    "scenarios.find_capacity": {"analysis", "numpy"} | SCIENCE,
    "scenarios.demo": {"analysis"} | LOCUST | WEB | SCIENCE,
    "analysis.statistics": LOCUST | WEB | PAGES,
    "analysis.reading": LOCUST | WEB | PAGES,
    "analysis.levels": LOCUST | WEB | PAGES,
    "analysis.evidence": LOCUST | WEB | PAGES,
    "analysis.virtual": LOCUST | WEB | PAGES,
    "analysis.memory": LOCUST | WEB | PAGES,
    "analysis.walls": LOCUST | WEB | PAGES,
    "analysis.answers": LOCUST | WEB | PAGES,
    "analysis.capacity": LOCUST | WEB | {"matplotlib"},
    "analysis.compare": LOCUST | WEB | {"matplotlib"},
    "analysis.search": LOCUST | WEB | {"matplotlib"},
    "analysis.sizing": LOCUST | WEB | {"matplotlib"},
    "analysis.twin": LOCUST | WEB | {"matplotlib"},
    "analysis.tune": LOCUST | WEB | {"matplotlib"},
    "analysis.production": LOCUST | WEB | {"matplotlib"},
    "analysis.workload": LOCUST | WEB | {"matplotlib"},
    "analysis.headroom": LOCUST | WEB | {"matplotlib"},
    "analysis.reporting": LOCUST | WEB,
}
"""Packages that no module of a room may import. A command of the analysis, its `__main__`, also prints."""


def module_files() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def imports() -> dict[str, set[str]]:
    """Modules of ours that each module imports, as its source says."""
    files = module_files()
    return {name: set(_imports_of(path, files)) - {name} for name, path in files.items()}


def _imports_of(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [inner] if inner in known else [node.module] if node.module in known else []  # type: ignore[list-item]


def storey(module: str) -> int | None:
    """The line of `ORDER` that a module belongs to."""
    for level, rooms in enumerate(ORDER):
        if any(inside(module, room) for room in rooms):
            return level
    return None


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str:
    return next(room for rooms in ORDER for room in rooms if inside(module, room))


def test_every_module_belongs_to_a_room() -> None:
    packages = {package for package in PACKAGES if storey(package) is None}
    homeless = [name for name in imports() if storey(name) is None and name not in packages]
    assert homeless == []
    assert {room for rooms in ORDER for room in rooms} == {
        room_of(name) for name in imports() if name not in packages
    }


def test_no_room_imports_one_that_stands_higher_or_beside_it() -> None:
    upwards = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if (here := storey(name)) is not None
        and (there := storey(other)) is not None
        and (there > here or (there == here and room_of(name) != room_of(other)))
    ]
    assert upwards == []
    assert sum(map(len, imports().values())) > 500  # the graph was read


def test_load_test_and_analysis_meet_in_files() -> None:
    met = [
        f"{name} imports {other}"
        for package, rooms in STRANGERS.items()
        for name, others in imports().items()
        for other in others
        if inside(name, package) and any(inside(other, room) for room in rooms)
    ]
    assert met == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}", pytrace=False)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_import_what_it_must_not_know(room: str) -> None:
    """Of a room all modules are imported together, in a process of their own."""
    commands = {name for name in module_files() if inside(name, "analysis") and name.endswith(".__main__")}
    modules = [name for name in module_files() if inside(name, room) and name not in commands]
    assert modules
    program = f"import {', '.join(modules)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert room.partition(".")[0] in loaded
    assert loaded & FORBIDDEN[room] == set()


def test_tests_and_benchmarks_share_testing_and_not_each_other() -> None:
    shared = {
        name: {other for other in others if inside(other, "tests") or inside(other, "benchmarks")}
        for name, others in imports().items()
    }
    assert {name: others for name, others in shared.items() if inside(name, "tests") and others} == {}
    assert {name: others for name, others in shared.items() if inside(name, "testing") and others} == {}
    assert sum(inside(name, "tests") for name in shared) > 50


OURS = ("loadtest", "analysis", "scenarios", "benchmarks", "testing")
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_FOLDER_MODULES = 500, 60, 12


def test_a_public_name_stands_for_one_thing() -> None:
    """Classes, functions and constants at the top of a module; `main` and `logger` are everybody's."""
    homes: dict[str, list[str]] = {}
    for module, path in module_files().items():
        if module.partition(".")[0] in OURS:
            for name in set(_public_names(ast.parse(path.read_text()))) - {"main", "logger"}:
                homes.setdefault(name, []).append(module)
    assert len(homes) > 500
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def _public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        names: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from [] if node.name.startswith("_") else [node.name]
        elif isinstance(node, ast.Assign):
            names = node.targets
        elif isinstance(node, ast.AnnAssign):
            names = [node.target]
        for target in names:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and not part.id.startswith("_"):
                    yield part.id


def test_modules_functions_and_folders_stay_small() -> None:
    large = []
    folders: dict[Path, int] = {}
    for module, path in module_files().items():
        text = path.read_text()
        if len(text.splitlines()) > MAX_MODULE_LINES:
            large.append(module)
        if not path.stem.startswith("__"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
        large += [
            f"{module}.{node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
        ]
    large += [str(folder) for folder, modules in folders.items() if modules > MAX_FOLDER_MODULES]
    assert large == []
    assert len(folders) > 30


def test_a_package_says_in_two_sentences_what_it_is_and_what_it_does_not_know() -> None:
    packages = {
        module: ast.get_docstring(ast.parse(path.read_text())) or ""
        for module, path in module_files().items()
        if path.name == "__init__.py" and module.partition(".")[0] in OURS
    }
    wrong = [module for module, said in packages.items() if len(re.findall(r"[.!](?=\s|$)", said)) != 2]
    assert wrong == []
    assert len(packages) > 25
