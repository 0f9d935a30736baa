"""The repository agrees with itself, and the package never runs what a file holds."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentpg
from benchmarks.learning import page as learning
from benchmarks.learning.store import PAGES
from benchmarks.page import PAGE, page

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# What turns bytes of a file into running code. safetensors, JSON, TOML and CSV are what is read and written here.
EXECUTES_BY_NAME = {"eval", "exec", "compile", "__import__"}
EXECUTES_BY_ATTRIBUTE = {
    "pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "joblib": {"load"},
    "torch": {"load"},
    "yaml": {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "numpy": {"load"},
    "np": {"load"},
}


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """Yield ``(line, what)`` for whatever could execute the contents of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXECUTES_BY_NAME:
            yield node.lineno, f"{node.func.id}()"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in EXECUTES_BY_ATTRIBUTE.get(node.value.id, ()):
                yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            for name in sorted(names & EXECUTES_BY_ATTRIBUTE.get(node.module or "", set())):
                yield node.lineno, f"{node.module}.{name}"


def test_the_package_never_runs_what_a_file_holds() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted((ROOT / "latentpg").rglob("*.py"))
        for line, what in dangers(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["pickle.loads(b)", "torch.load(p)", "yaml.load(f)", "eval('1')", "from torch import load", "f = pickle.Unpickler"],
)
def test_a_danger_is_found_out(source: str) -> None:
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source", ["policy.eval()", "safetensors.torch.load_file(p)", "torch.compile(f)", "re.compile(r)"]
)
def test_what_only_looks_dangerous_is_let_through(source: str) -> None:
    assert not list(dangers(source))


def pins() -> dict[str, str]:
    """Return ``name -> version`` of constraints.txt, the names as package indexes compare them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pairs}


def test_constraints_pin_exact_versions_that_every_platform_has() -> None:
    vague = [f"{name}=={version}" for name, version in pins().items() if not re.fullmatch(r"\d[\w.]*", version)]
    assert not vague, f"neither a local suffix like +cpu nor a range can be a pin: {vague}"


def test_everything_the_project_asks_for_is_pinned() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *(each for extra in extras.values() for each in extra)]
    names = {re.match(r"[\w.-]+", each)[0].lower() for each in wanted}  # type: ignore[index]
    assert not names - pins().keys()


def test_the_version_is_the_changelogs_newest() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    assert headings[0][0] == PYPROJECT["project"]["version"] == latentpg.__version__


def test_the_package_is_typed() -> None:
    assert (ROOT / "latentpg" / "py.typed").is_file()


def test_the_benchmarks_page_holds_the_committed_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks.page"


@pytest.mark.parametrize("file", [file for file, names in PAGES.items() if names])
def test_the_pages_of_learning_hold_the_committed_results(file: str) -> None:
    written = (learning.DOCS / file).read_text(encoding="utf-8")
    assert written == learning.page(file, written), "run: python -m benchmarks.learning.page"
