"""Write the tables of ``docs/benchmarks.md`` from ``benchmarks/results``: ``python -m benchmarks.page``.

``make bench`` comes first. What stands above the mark is written by hand and left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "<!-- what follows is written by `python -m benchmarks.page` -->"

TITLES = {
    "scoring": "Scoring plus backward",
    "libraries": "Beside other libraries",
    "replicates": "Many replicates of a gradient",
    "memory": "Memory",
    "acting": "Acting",
    "studies": "Studies in parallel processes",
    "avoiding": "Environment steps",
    "training": "Training beside Stable-Baselines3",
    "parallel": "Two workers over one",
    "checkpointing": "Checkpoints",
}
"""A section for each file of results, in this order."""


def tables() -> str:
    """Render every file of results, each with the circumstances it was taken in."""
    return "\n".join(line for name, title in TITLES.items() for line in _section(title, RESULTS / f"{name}.json"))


def page() -> str:
    """Return what the page should hold: its own text, then the tables."""
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + f"{MARK}\n\n{tables()}"


def _section(title: str, path: Path) -> Iterator[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    yield f"## {title}\n"
    yield "| what | measured | target | |"
    yield "|---|--:|--:|---|"
    for row in content["rows"]:
        yield f"| {row['claim']} | {_figure(row)} | {_target(row)} | {row['verdict'].replace('-', '')} |"
    yield f"\n{_circumstances(content['environment'], path)}\n"


def _figure(row: dict[str, Any]) -> str:
    return f"{row['figure']:.3g} {row['unit']}"


def _target(row: dict[str, Any]) -> str:
    return row["target"].replace("<=", "≤").replace(">=", "≥").removeprefix("-")


def _circumstances(environment: dict[str, Any], path: Path) -> str:
    where = path.relative_to(ROOT)
    return (
        f"Seed {environment['seed']}, {environment['threads']} thread, {environment['cpu']}, {environment['cores']} "
        f"cores, load {environment['load']:.1f} when it ended; Python {environment['python']}, torch "
        f"{environment['torch']}; commit {environment['commit']}. Quartiles and seconds are in `{where}`."
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
