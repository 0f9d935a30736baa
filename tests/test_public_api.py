"""Every public name is documented, listed in the reference and annotated, in every public module."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
from public_names import docstring, home, public_modules, public_names

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
MODULES = public_modules()


def listed_modules() -> set[str]:
    """Return the modules the reference documents: each one named, and the modules directly in a package named."""
    named = {
        package
        for page in REFERENCE.glob("*.md")
        for package in re.findall(
            r"^\.\. public-modules:: ([\w.]+)$(?!\n +:names-only:)", page.read_text("utf-8"), re.M
        )
    }
    packages = {m for m in MODULES if hasattr(importlib.import_module(m), "__path__")}
    return named | {m for m in MODULES if m not in packages and m.rpartition(".")[0] in named}


def functions_of(value: object) -> Iterator[tuple[str, FunctionType, bool]]:
    """Yield ``(name, function, is_bound)`` of a function, or of what a class defines for its users to call."""
    if isinstance(value, FunctionType):
        yield value.__name__, value, False
    elif isinstance(value, type):
        for name, member in vars(value).items():
            if name.startswith("_") and name not in {"__init__", "__call__"}:
                continue
            is_bound = not isinstance(member, staticmethod)
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            # a Protocol's __init__ and other things Python puts there are not written by anyone here
            if isinstance(member, FunctionType) and member.__qualname__.startswith(value.__qualname__ + "."):
                yield f"{value.__name__}.{name}", member, is_bound


def unannotated(value: object) -> list[str]:
    """Return what lacks an annotation in a function's signature, or in those of a class's public methods."""
    found = []
    for name, function, is_bound in functions_of(value):
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[int(is_bound) :]
        found += [f"{name}({p.name})" for p in parameters if p.annotation is inspect.Parameter.empty]
        found += [f"{name}() ->"] if signature.return_annotation is inspect.Signature.empty else []
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_exists_once(module: str) -> None:
    names = public_names(module)
    assert len(names) == len(set(names)), f"{module}.__all__ names something twice"
    missing = [name for name in names if not hasattr(importlib.import_module(module), name)]
    assert not missing, f"{module}.__all__ promises {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module: str) -> None:
    assert importlib.import_module(module).__doc__, f"{module} has no docstring"
    silent = [name for name in public_names(module) if not docstring(module, name)]
    assert not silent, f"{module}: no docstring for {silent} (for a constant: a string on the line after it)"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    listed = listed_modules()
    absent = sorted({home(module, name) for name in public_names(module) if name != "__version__"} - listed)
    assert not absent, f"no page under docs/reference/ has `.. public-modules::` for {absent}"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_annotated(module: str) -> None:
    found = [f for name in public_names(module) for f in unannotated(getattr(importlib.import_module(module), name))]
    assert not found, f"{module}: no annotation at {', '.join(found)}"


# The tests of these tests.

FAULTY = '''\
"""A module with one of each fault."""
from dataclasses import dataclass

DOCUMENTED = 1
"""A constant."""
SILENT = 2

@dataclass
class SilentDataclass:
    field: int

class Half:
    """A class."""
    def method(self, x, y: int) -> int:
        return y
    @staticmethod
    def free(x):
        return x
    @property
    def value(self):
        return 1

def silent(x):
    return x

def _private(x):
    return x
'''


def test_faults_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_of_each_fault.py").write_text(FAULTY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name = "one_of_each_fault"
    module = importlib.import_module(name)
    assert public_names(name) == ["DOCUMENTED", "SILENT", "SilentDataclass", "Half", "silent"]
    assert [n for n in public_names(name) if not docstring(name, n)] == ["SILENT", "SilentDataclass", "silent"]
    assert unannotated(module.silent) == ["silent(x)", "silent() ->"]
    assert unannotated(module.SilentDataclass) == []
    assert unannotated(module.Half) == ["Half.method(x)", "Half.free(x)", "Half.free() ->", "Half.value() ->"]
