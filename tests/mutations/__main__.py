"""Take out every guard, one at a time, in a copy of the package: ``python -m tests.mutations [TEXT]``.

A guard whose tests still pass survives, and the exit status is 1. ``TEXT`` chooses guards by their names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutations.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]
LIMIT = 180
"""Seconds for a guard's tests; one whose loss makes them hang is noticed too."""


def noticed(guard: Guard, tree: Path) -> bool:
    """Take one guard out, run its tests, and put it back."""
    file = tree / guard.path
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(guard.before, guard.after), encoding="utf-8")
    try:
        return any(fails(tests, tree) for tests in guard.tests)
    finally:
        file.write_text(whole, encoding="utf-8")


def fails(tests: str, tree: Path) -> bool:
    """Tell whether tests of the copied package fail; nothing collected is an error here and not a success."""
    words, _, chosen = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *words.split()]
    command += ["-k", chosen] if chosen else []
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return True
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"{tests} could not be run:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return ended.returncode == 1


def main() -> int:
    text = " ".join(sys.argv[1:])
    chosen = [guard for guard in GUARDS if text in guard.name]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for part in ("latentpg", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt", "CHANGELOG.md", "README.md"):
            shutil.copy(ROOT / name, tree / name)
        for guard in chosen:
            found = noticed(guard, tree)
            survivors += [] if found else [guard]
            print(f"{'noticed ' if found else 'SURVIVED'}  {guard.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} guards are missed when they are gone")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
