"""Write tables and figures of the pages on learning and cloning: ``python -m benchmarks.learning.page``.

Text is written by hand; what stands between a study's two marks is written here.
"""

from __future__ import annotations

from typing import Any

from benchmarks.learning.store import FOLDER, PAGES, Results, results, study
from benchmarks.measure import ROOT

DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"
END = "<!-- end of results -->"


def mark(name: str) -> str:
    return f"<!-- results of {name}, written by `python -m benchmarks.learning.page` -->"


def page(file: str, text: str) -> str:
    """Put the results of every study of a page between its marks."""
    for name in PAGES[file]:
        before, found, rest = text.partition(mark(name))
        _, ended, after = rest.partition(END)
        if not found or not ended:
            raise ValueError(f"{file} has no place for the results of {name}: {mark(name)} ... {END}")
        text = f"{before}{mark(name)}\n\n{section(name)}\n\n{END}{after}"
    return text


def section(name: str) -> str:
    """Write one study's table, and on what it was taken."""
    found = results(name)
    return "\n".join([*study(name).table(found), "", _circumstances(name, found)])


def _circumstances(name: str, found: Results) -> str:
    every = [each for seeds in found.values() for each in seeds.values()]
    hours = sum(each["cpu_seconds"] for each in every) / 3600
    where = FOLDER.relative_to(ROOT) / name
    return (
        f"{len(every)} runs, {hours:.1f} hours of one core; commit {_all(every, 'commit')}; Python "
        f"{_all(every, 'python')}, {_versions(every)}. Options, every return and the seeds: `{where}`."
    )


def _all(every: list[dict[str, Any]], key: str) -> str:
    return ", ".join(sorted({each[key] for each in every}))


def _versions(every: list[dict[str, Any]]) -> str:
    seen: dict[str, set[str]] = {}
    for each in every:
        for name, told in each["versions"].items():
            seen.setdefault(name, set()).add(told)
    return ", ".join(f"{name} {' and '.join(sorted(told))}" for name, told in seen.items())


def main() -> None:
    for file, names in PAGES.items():
        if names:
            path = DOCS / file
            path.write_text(page(file, path.read_text(encoding="utf-8")), encoding="utf-8")
        for name in names:
            for figure in study(name).draw(results(name), FIGURES):
                print(figure)


if __name__ == "__main__":
    main()
