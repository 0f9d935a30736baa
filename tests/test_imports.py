"""Imports point one way, and importing the library is quick.

The order is held on the source itself, function bodies and ``TYPE_CHECKING`` blocks included: a late import still is a
dependency. A room that is not in ``LAYERS`` fails, so that a new one is placed by a decision.
"""

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "latentpg"

# Lowest first. A room may import rooms of lower layers, and of its own layer as long as no circle arises.
LAYERS = (
    {"errors"},
    {"numerics"},
    {"programs"},
    {"policies", "estimators", "oracles", "values", "envs"},
    {"rollout", "runs", "data"},
    {"learners", "evaluation"},
    {"imitation"},
    {"studies", "training", "recording"},
    {"cloning"},
    {"latentpg"},  # the facade: `import latentpg`
    {"cli", "__main__"},
)
LAYER = {room: height for height, layer in enumerate(LAYERS) for room in layer}

# The three axes of the design never know each other; they meet in a learner, through `log_prob`.
STRANGERS = (
    ("latentpg.estimators", "latentpg.numerics.surrogates"),
    ("latentpg.numerics.surrogates", "latentpg.estimators"),
    ("latentpg.policies", "latentpg.estimators"),
    ("latentpg.estimators", "latentpg.policies"),
    ("latentpg.policies", "latentpg.numerics.surrogates"),
    ("latentpg.numerics.surrogates", "latentpg.policies"),
    *(
        pair
        for part in ("ratios", "group_advantages", "baselines", "aggregation", "penalties", "controllers", "targets")
        for pair in (
            ("latentpg.estimators", f"latentpg.numerics.{part}"),
            ("latentpg.policies", f"latentpg.numerics.{part}"),
        )
    ),
)

# Who may touch Pyro's handlers and inference: the room that runs programs, and the two adapters to Pyro's own world.
HANDLERS = ("pyro.poutine", "pyro.infer")
MAY_TOUCH_HANDLERS = ("latentpg.programs", "latentpg.policies.svi", "latentpg.policies.foreign")

NUMERICS_MAY_IMPORT = {"torch", "numpy", "jaxtyping", "latentpg"} | set(sys.stdlib_module_names)


@dataclass(frozen=True)
class Import:
    """``importer`` imports ``imported`` (a module, or a name inside of one) at ``line``."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def read_sources() -> dict[str, str]:
    """Return the source of every module by its dotted name; a package goes by its own name."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Yield what a module imports, and what it reaches by attribute from ``import pyro``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (Import(module, f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pyro":
            yield Import(module, f"pyro.{node.attr}", node.lineno)


def room(name: str) -> str:
    """Return the room a dotted name of this package lies in; the package itself is the facade."""
    return name.split(".")[1] if "." in name else "latentpg"


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules_imported(imports: list[Import], modules: set[str]) -> dict[str, set[str]]:
    """Return ``importer -> modules`` inside this package, a name inside of a module standing for the module."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports:
        target = found.imported
        while target not in modules and "." in target:
            target = target.rpartition(".")[0]
        if target in modules:
            graph[found.importer].add(target)
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one circle of a directed graph, or an empty list."""
    done: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := follow(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := follow(node, []))), [])


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return every breach of the order in these sources, a line each."""
    imports = [found for module, source in sources.items() for found in imports_of(module, source)]
    own = [found for found in imports if is_inside(found.imported, "latentpg")]
    graph = modules_imported(own, set(sources))
    rooms: dict[str, set[str]] = {}
    for importer, targets in graph.items():
        rooms.setdefault(room(importer), set()).update(room(t) for t in targets if room(t) != room(importer))

    found = [f"{unplaced}: a new room; give it a place in LAYERS" for unplaced in sorted(rooms.keys() - LAYER.keys())]
    for each in imports:
        if each.imported.startswith("."):
            found.append(f"{each}: write the absolute name")
        if any(is_inside(each.imported, h) for h in HANDLERS):
            if not any(is_inside(each.importer, allowed) for allowed in MAY_TOUCH_HANDLERS):
                found.append(f"{each}: only {', '.join(MAY_TOUCH_HANDLERS)} may")
        if is_inside(each.importer, "latentpg.numerics") and each.imported.split(".")[0] not in NUMERICS_MAY_IMPORT:
            found.append(f"{each}: numerics is torch alone")
    for importer, targets in graph.items():
        for target in sorted(targets):
            above = LAYER.get(room(target), -1) > LAYER.get(room(importer), len(LAYERS))
            strange = any(is_inside(importer, a) and is_inside(target, b) for a, b in STRANGERS)
            if above:
                found.append(f"{importer} imports {target}, which lies above it")
            if strange:
                found.append(f"{importer} imports {target}: these two never know each other")
    for each in own:
        if room(each.imported) == "latentpg" or each.imported.split(".")[1] not in LAYER:
            if room(each.importer) != "latentpg" and each.imported != "latentpg.__version__":
                found.append(f"{each}: import from the module that defines it, not from the facade")
    if path := circle(rooms):
        found.append("a circle of rooms: " + " -> ".join(path))
    if path := circle(graph):
        found.append("a circle of modules: " + " -> ".join(path))
    return found


def test_imports_point_one_way() -> None:
    assert not (found := faults(read_sources())), "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("latentpg.numerics.weights", "from latentpg.programs import capture", "lies above it"),
        ("latentpg.numerics.weights", "import pyro", "numerics is torch alone"),
        ("latentpg.errors", "def f():\n    from latentpg.numerics import weights", "lies above it"),
        (
            "latentpg.estimators.conditional",
            "from latentpg.numerics.surrogates import ppo_clip",
            "never know each other",
        ),
        ("latentpg.estimators.conditional", "from latentpg.numerics import surrogates", "never know each other"),
        ("latentpg.estimators.conditional", "from latentpg.policies.heads import Head", "never know each other"),
        ("latentpg.estimators.conditional", "import pyro\npyro.poutine.trace", "only latentpg.programs"),
        ("latentpg.estimators.conditional", "from pyro import poutine", "only latentpg.programs"),
        ("latentpg.policies.heads", "from pyro.infer.reparam import LocScaleReparam", "only latentpg.programs"),
        ("latentpg.estimators.conditional", "from latentpg import ELBO", "not from the facade"),
        ("latentpg.estimators.conditional", "from . import base", "write the absolute name"),
        ("latentpg.newroom.thing", "import torch", "a new room"),
        ("latentpg.estimators.base", "from latentpg.estimators.conditional import X", "a circle of modules"),
        ("latentpg.values.critic", "from latentpg.envs.toy import X", "a circle of rooms"),
        ("latentpg.studies.grid", "from latentpg.cli import main", "lies above it"),
    ],
)
def test_a_breach_is_found_out(module: str, source: str, fault: str) -> None:
    sound = {
        "latentpg": "from latentpg.estimators.base import Particles",
        "latentpg.errors": "",
        "latentpg.numerics": "",
        "latentpg.numerics.surrogates": "import torch",
        "latentpg.programs.capture": "import pyro\npyro.poutine.trace\nfrom latentpg.errors import SiteError",
        "latentpg.policies.svi": "from pyro.infer import SVI",
        "latentpg.policies.heads": "import pyro.distributions as dist",
        "latentpg.estimators.base": "import math",
        "latentpg.estimators.conditional": "from latentpg.estimators.base import X\nimport latentpg.programs.capture",
        "latentpg.values.critic": "",
        "latentpg.envs.toy": "from latentpg.values.critic import X",
        "latentpg.studies.grid": "from latentpg.estimators.base import X",
        "latentpg.cli": "from latentpg.studies.grid import X",
    }
    assert faults(sound) == []
    assert any(fault in found for found in faults(sound | {module: source})), faults(sound | {module: source})


IMPORT_AND_TELL = """
import json, sys, time
import torch, pyro
before = set(sys.modules)
start = time.process_time()
import latentpg
print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]))
"""


def import_in_a_fresh_process() -> tuple[float, list[str]]:
    command = [sys.executable, "-c", IMPORT_AND_TELL]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120)
    seconds, added = json.loads(told.stdout)
    return seconds, added


@pytest.mark.production
def test_import_is_quick_and_takes_in_nothing_heavy() -> None:
    """At most 0.3 s beyond torch and Pyro: seconds of this process's own work, which busy neighbours do not stretch."""
    told = [import_in_a_fresh_process() for _ in range(6)][1:]  # the first run may have to write bytecode
    added = {name.split(".")[0] for _, names in told for name in names}
    heavy = added & {"matplotlib", "tyro", "rich", "joblib", "scipy", "pandas", "pyarrow"}
    assert not heavy, f"import latentpg imports {sorted(heavy)}; import them where they are used"
    seconds = statistics.median(seconds for seconds, _ in told)
    assert seconds <= 0.3, f"import latentpg takes {seconds:.2f} s beyond torch and Pyro"
