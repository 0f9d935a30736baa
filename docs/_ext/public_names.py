"""The API reference follows the package: what is public, where it is documented, and that nothing is left out.

A name is public if its module lists it in ``__all__``; a module without ``__all__`` gives every name without a leading
underscore that is defined in it, type variables aside. A module is public if no part of its name begins with an
underscore. A name handed on by a package belongs to the public module that defines it: that is its *home*, and there it
is documented, once.

The Sphinx extension adds a directive and two checks::

    .. public-modules:: latentpg.numerics

writes the package's docstring, the names that can be imported from it, and a section for each of its modules. The
build warns (so that ``-W`` fails it) about each public name without a docstring and each that no page documents.
References to a public name through any module that hands it on, or by the bare name where only one thing is called so,
find its home.
"""

import ast
import importlib
import inspect
import pkgutil
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, ClassVar, ParamSpec, TypeVar, TypeVarTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

PACKAGE = "latentpg"
logger = logging.getLogger(__name__)


@cache
def public_modules(package: str = PACKAGE) -> tuple[str, ...]:
    """Return the public modules of a package by name, itself first."""
    top = importlib.import_module(package)
    found = pkgutil.walk_packages(getattr(top, "__path__", []), prefix=package + ".")
    inner = sorted(m.name for m in found if not any(part.startswith("_") for part in m.name.split(".")))
    return (package, *inner)


def public_names(module: str) -> list[str]:
    """Return the public names of a module."""
    namespace = vars(importlib.import_module(module))
    if "__all__" in namespace:
        return list(namespace["__all__"])
    defined = [name for name in assigned_names(module) if not name.startswith("_")]
    return [name for name in defined if not isinstance(namespace[name], TypeVar | ParamSpec | TypeVarTuple)]


@cache
def assigned_names(module: str) -> dict[str, str | None]:
    """Return the names a module's own source defines, each with the docstring written for it there."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    names: dict[str, str | None] = {}
    for statement, following in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[statement.name] = ast.get_docstring(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            text = _text(following)
            names |= {t.id: text for t in targets if isinstance(t, ast.Name)}
    return names


def _text(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return statement.value.value if isinstance(statement.value.value, str) else None
    return None


def home(module: str, name: str) -> str:
    """Return the public module that documents ``module.name``: the one that defines it, else ``module`` itself."""
    value = getattr(importlib.import_module(module), name)
    return next((m for m in _definers(name) if getattr(importlib.import_module(m), name) is value), module)


@cache
def _definers(name: str) -> tuple[str, ...]:
    return tuple(m for m in public_modules() if name in assigned_names(m) and name in public_names(m))


def docstring(module: str, name: str) -> str | None:
    """Return what is written about a name, not what Python makes up or inherits for want of it."""
    value = getattr(importlib.import_module(module), name)
    if isinstance(value, ModuleType):
        return value.__doc__
    if isinstance(value, type | FunctionType):
        text = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
        made_up = isinstance(value, type) and text is not None and text.startswith(value.__name__ + "(")
        return None if made_up else text  # a dataclass without a docstring is given its own signature
    return assigned_names(home(module, name)).get(name)


class PublicModules(SphinxDirective):
    """Write the reference of one package, or of one module."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"names-only": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the package's docstring, its names and its modules."""
        package: str = self.arguments[0]
        if package not in public_modules():
            raise self.error(f"{PACKAGE} has no public module {package}: name one that exists, or remove the page")
        self.env.note_dependency(str(inspect.getsourcefile(importlib.import_module(package))))
        direct = [m for m in public_modules(package)[1:] if m.count(".") == package.count(".") + 1]
        chapters = [m for m in direct if not hasattr(importlib.import_module(m), "__path__")]
        own = [n for n in public_names(package) if home(package, n) == package]
        handed_on = [n for n in public_names(package) if n not in own]
        lines: list[str] = []
        if "names-only" not in self.options:
            lines += self._automodule(package, own)
        if handed_on:
            links = ", ".join(f":py:obj:`~{home(package, n)}.{n}`" for n in sorted(handed_on, key=str.lower))
            lines += [f"To be imported from ``{package}``: {links}.", ""]
        if "names-only" not in self.options:
            for chapter in chapters:
                title = chapter.removeprefix(PACKAGE + ".")
                lines += [title, "-" * len(title), "", *self._automodule(chapter, self._at_home(chapter))]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    @staticmethod
    def _at_home(module: str) -> list[str]:
        return [name for name in public_names(module) if home(module, name) == module]

    @staticmethod
    def _automodule(module: str, names: list[str]) -> list[str]:
        members = [f"   :members: {', '.join(names)}"] if names else ["   :no-members:"]
        return [f".. automodule:: {module}", *members, ""]


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about every public name that has no docstring, or no place in the reference."""
    documented = env.domains.python_domain.objects
    for module in public_modules():
        for name in public_names(module):
            place = home(module, name)
            if not docstring(module, name):
                logger.warning("public name without a docstring: %s.%s", module, name)
            elif f"{place}.{name}" not in documented and name != "__version__":
                logger.warning("public name that no page of the reference documents: %s.%s", place, name)


def find_home(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> nodes.Node | None:
    """Resolve a reference to a public name by another path than its home's, or by its bare name."""
    target = str(node.get("reftarget", "")).lstrip(".")
    if node.get("refdomain") != "py" or not target:
        return None
    documented = env.domains.python_domain.objects
    found = _through_the_package(target) if target.startswith(PACKAGE + ".") else _by_bare_name(target)
    if found not in documented:
        is_annotation = "refwarn" not in node  # a role sets it; annotations are the type checker's to hold, not ours
        return contnode if is_annotation else None
    entry = documented[found]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found)


def _through_the_package(target: str) -> str:
    """Return the documented name of ``latentpg.path.Name`` or ``latentpg.path.Name.member``."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module, name, rest = ".".join(parts[:cut]), parts[cut], parts[cut + 1 :]
        if module in public_modules() and hasattr(importlib.import_module(module), name):
            return ".".join([home(module, name), name, *rest])
    return ""


def _by_bare_name(target: str) -> str:
    name, *rest = target.split(".")
    definers = _definers(name)
    return ".".join([definers[0], name, *rest]) if len(definers) == 1 else ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive, the checks and the resolver to Sphinx."""
    app.add_directive("public-modules", PublicModules)
    app.connect("env-check-consistency", check_names)
    app.connect("missing-reference", find_home)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
