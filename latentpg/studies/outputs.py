"""Everything a finished study writes into its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentpg.runs import RunFolder, write_csv, write_json, write_parquet
from latentpg.studies.figures import draw_figures
from latentpg.studies.report import write_report
from latentpg.studies.run import StudyResult, merge_skipped
from latentpg.studies.tables import find, tidy_rows


@dataclass(frozen=True)
class Outputs:
    """Absolute paths of what was written; each figure is there as SVG and CSV too."""

    report: Path
    table: Path
    figures: tuple[Path, ...]


def write_outputs(result: StudyResult, folder: RunFolder, *, command: str) -> Outputs:
    """Write ``table.csv``, ``result.json``, the figures and, last, ``report.html``: where that is, all is there.

    The table is there as ``table.parquet`` too if pyarrow is installed.
    """
    write_csv(folder.file("table.csv"), tidy_rows(result))
    write_parquet(folder.file("table.parquet"), tidy_rows(result))
    write_json(
        folder.file("result.json"),
        {
            "study": result.study.name,
            "facts": result.facts,
            "findings": [
                {"facet": f.facet.label, "line": f.line.label, "found": f.text, "agrees": f.agrees}
                for f in find(result)
            ],
            "skipped": [{"cells": which, "reason": why} for which, why in merge_skipped(result.skipped)],
            "seconds": result.seconds,
        },
    )
    figures = draw_figures(result, folder, command=command)
    write_report(result, folder, figures, command=command)
    return Outputs(folder.file("report.html"), folder.file("table.csv"), tuple(drawn.png for drawn in figures))
