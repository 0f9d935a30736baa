"""The one-page report of a study: a single HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template

from latentpg.runs import FORMAT_VERSION, RunFolder, publish
from latentpg.studies.figures import Drawn
from latentpg.studies.run import StudyResult, merge_skipped
from latentpg.studies.tables import Facet, Finding, expected, facets, find, pages, summarize


def write_report(result: StudyResult, folder: RunFolder, figures: Sequence[Drawn], *, command: str) -> None:
    """Write ``report.html`` into a run folder."""
    template = Template(resources.files("latentpg.studies").joinpath("report.html").read_text(encoding="utf-8"))
    record = json.loads(folder.file("run.json").read_text(encoding="utf-8"))
    page = template.substitute(
        format_version=FORMAT_VERSION,
        name=_text(result.study.name),
        title=_text(result.study.title),
        version=_text(record["versions"]["latentpg"]),
        started=_text(record["started"]),
        command=_text(command),
        question=_text(_question(result)),
        facts="\n".join(f"<li>{_text(name)}: {_text(_number(value))}</li>" for name, value in result.facts.items()),
        summary="\n".join(_summary(result, facet, place) for place, facet in enumerate(facets(result.study))),
        findings="\n".join(_finding(result, finding) for finding in find(result)),
        skipped=_skipped(result),
        figures="\n".join(_figures(facet, figures) for facet in pages(result.study)),
        num_replicates=result.study.num_replicates,
        config=_text(folder.file("config.toml").read_text(encoding="utf-8")),
        circumstances=_text(_circumstances(record, result)),
    )
    publish(folder.file("report.html"), page.encode())


def _question(result: StudyResult) -> str:
    study = result.study
    axes = "; ".join(f"{axis} = {', '.join(map(str, values))}" for axis, values in study.axes.items())
    return (
        f"Targets: {', '.join(study.targets)}. Rows: {study.source.describe()}. Axes: {axes}. In each cell "
        f"{study.num_replicates} independent replicates, held against the exact answer where there is one. Seed "
        f"{study.seed}. What the source says of the rows:"
    )


MANY_FACETS = 4
"""More tables than this are folded, all but the first."""


def _summary(result: StudyResult, facet: Facet, place: int) -> str:
    table = summarize(result, facet)
    rows = "\n".join([_row(table.columns, "th"), *(_row(row, "td") for row in table.rows)])
    whole = f'<div class="wide"><table class="summary">{rows}</table></div>'
    if len(facets(result.study)) <= MANY_FACETS:
        return f"<h3>{_text(facet.label)}</h3>{whole}"
    return f"<details{' open' if place == 0 else ''}><summary>{_text(facet.label)}</summary>{whole}</details>"


def _figures(facet: Facet, figures: Sequence[Drawn]) -> str:
    mine = "\n".join(_figure(drawn) for drawn in figures if drawn.facet == facet)
    return f'<h3>{_text(facet.label)}</h3><div class="figures">{mine}</div>' if mine else ""


def _finding(result: StudyResult, finding: Finding) -> str:
    claim = expected(result.study, finding.line, finding.facet)
    verdict = {True: "as expected", False: '<span class="against">against expectation</span>', None: "no test"}[
        finding.agrees
    ]
    texts = (finding.facet.label, finding.line.label, claim.kind.value, claim.reason, finding.text)
    return f"<tr>{''.join(f'<td>{_text(text)}</td>' for text in texts)}<td>{verdict}</td></tr>"


def _skipped(result: StudyResult) -> str:
    merged = merge_skipped(result.skipped)
    if not merged:
        return ""
    items = "".join(f"<li><b>{_text(which)}</b>: {_text(why)}</li>" for which, why in merged)
    return f"<p>Skipped, because it does not apply to this source:</p><ul>{items}</ul>"


def _figure(drawn: Drawn) -> str:
    # an image of its own keeps the identifiers inside one SVG apart from those of the next
    source = base64.b64encode(drawn.svg_text).decode()
    caption = f"{drawn.plot.label} against {drawn.plot.cost_label or 'the axis below'}"
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{_text(caption)} (<code>{_text(drawn.svg.name)}</code>)</figcaption></figure>"
    )


def _circumstances(record: dict, result: StudyResult) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    hardware = record["hardware"]
    return (
        f"Python {record['python']}; {versions}; commit {record['commit'] or 'unknown'}. "
        f"{hardware['processor']}, {hardware['cores']} cores, one torch thread, {hardware['system']}. "
        f"The cells took {result.seconds:.0f} s."
    )


def _row(entries: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(entry)}</{tag}>' for entry in entries)}</tr>"


def _number(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    return html.escape(str(value))
