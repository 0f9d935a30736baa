"""The one-page report of a run of cloning: a single HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from latentpg.cloning.drawing import DrawnFigure
from latentpg.cloning.measures import Measured
from latentpg.cloning.preparing import Prepared
from latentpg.cloning.telling import collapse_lines
from latentpg.evaluation import Likelihood
from latentpg.numerics.statistics import Interval
from latentpg.runs import FORMAT_VERSION, publish


def write_report(
    built: Prepared, measured: Measured, folder: Path, figures: Sequence[DrawnFigure], told: Mapping[str, Any]
) -> Path:
    """Write ``report.html`` into a run folder, and return its path."""
    template = Template(resources.files("latentpg.cloning").joinpath("report.html").read_text(encoding="utf-8"))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    selection = built.config.selection
    page = template.substitute(
        format_version=FORMAT_VERSION,
        title=_text(f"{selection.env or selection.data}: policy {selection.policy}, objective {selection.objective}"),
        version=_text(record["versions"]["latentpg"]),
        started=_text(record["started"]),
        command=_text(record["command"]),
        lead=_text(_lead(built, told)),
        likelihood="\n".join(_likelihood(measured)),
        scale="" if measured.scale is None else _list(measured.scale.lines()),
        collapse=_section("Use of the latent", _list(_collapse(measured))),
        behaviour=_section("Roll-outs", _behaviour(measured)),
        figures="\n".join(map(_figure, figures)),
        config=_text((folder / "config.toml").read_text(encoding="utf-8")),
        circumstances=_text(_circumstances(record, told)),
    )
    path = folder / "report.html"
    publish(path, page.encode())
    return path


def _lead(built: Prepared, told: Mapping[str, Any]) -> str:
    train, validation, test = built.split.sizes
    best = told["best"]
    handed = "those of that epoch" if told["kept"] == "best" else "those of the last one"
    floored = built.normalization.floored
    flat = f" Hardly varying: {', '.join(floored)}." if floored else ""
    return (
        f"Learnt from {train} episodes ({built.rows.size} rows) of {built.config.selection.data}; {validation} "
        f"episodes were for validation and {test} for the test. {told['epochs']} epochs took {told['seconds']:.0f} s. "
        f"On the validation part epoch {best['epoch']} was best, with {best['valid/log_prob']:.2f} nats a row in "
        f"policy coordinates; the parameters measured here are {handed}.{flat}"
    )


def _likelihood(measured: Measured) -> list[str]:
    found = measured.likelihood
    main = found.likelihood
    rows = [
        _row("nats a dimension", main.per_dimension, f"{main.kind}: {main.method}; measured by {found.why}"),
        _row("nats a row", main.per_row, _of(main)),
    ]
    if measured.curve is not None:
        for point in measured.curve.points:
            lacks = (
                f"lacks {-point.bias:.3f} to first order" if -point.bias < 1 else "its weights are too uneven to say"
            )
            note = f"lower bound; {lacks}{'' if -point.bias < 1 else ' what it lacks'}"
            rows.append(_row(f"nats a row, K = {point.num_particles}", point.bound, note))
    if measured.gap is not None:
        gap = measured.gap
        rows.append(_row("gap on dreamed rows, nats a row", gap.gap, f"{len(gap.lower)} rows, between both bounds"))
    text = "of a step, in all these numbers: policy coordinates against the data's units"
    return [*rows, _plain("Jacobian, nats", f"{measured.log_jacobian:.3f}", text)]


def _of(found: Likelihood) -> str:
    return (
        f"{len(found.log_prob)} rows of {len(found.cluster.unique())} episodes, {int(found.dimensions.sum())} numbers"
    )


def _collapse(measured: Measured) -> list[str]:
    return [] if measured.collapse is None else collapse_lines(measured.collapse)


def _behaviour(measured: Measured) -> str:
    outcome = measured.outcome
    if outcome is None:
        return ""
    number, found = len(outcome.played.returns), outcome.behaviour
    rows = [_row("mean return", outcome.returns, f"{number} roll-outs, {outcome.acting}")]
    if found is not None:
        reached = int((found.counts > 0).sum())
        rows += [
            _row("success", found.success, "Wilson's interval"),
            _row("entropy of ways", found.entropy, f"{int(found.counts.sum())} successes, as a share of its largest"),
            _plain("ways reached", f"{100 * found.coverage:.0f} %", f"of the demonstrated; {reached} in all"),
            _plain("smoothed KL, nats", f"{found.divergence:.3f}", "of the demonstrations' ways to the roll-outs'"),
        ]
        if found.contexts is None:
            alone = len(outcome.played.starts.unique(dim=0)) == 1
            told = "1" if alone else "–"
            text = "every roll-out begins alike" if alone else "not played again from the same initial state"
            rows.append(_plain("initial states", told, text))
        else:
            each = found.contexts
            rows += [
                _plain("initial states without a success", f"{each.num_failed} of {each.num_contexts}", ""),
                _row("entropy in an initial state", each.solved, "where solved"),
                _row("entropy in an initial state", each.every, "everywhere"),
            ]
    what = "mean return" if found is None else "success"
    rows += [_row(f"{what}, z of {name}", value, _WHOSE[name]) for name, value in outcome.sensitivity.items()]
    head = '<tr><th></th><th class="number">value</th><th class="number">95&nbsp;% interval</th><th></th></tr>'
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


_WHOSE: Mapping[str, str] = {
    "prior": "as the policy itself draws it",
    "prior-mean": "the prior's middle: no draw at all",
    "posterior": "the guide's, on what was learnt from",
}


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>\n{body}" if body else ""


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(line.strip())}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _row(name: str, found: Interval, text: str) -> str:
    ends = "–" if found.low != found.low else f"{found.low:.3f} to {found.high:.3f}"
    value = "–" if found.value != found.value else f"{found.value:.3f}"
    return f"<tr><td>{_text(name)}</td><td class=number>{value}</td><td class=number>{ends}</td>{_cell(text)}</tr>"


def _plain(name: str, value: str, text: str) -> str:
    return f"<tr><td>{_text(name)}</td><td class=number>{_text(value)}</td><td></td>{_cell(text)}</tr>"


def _cell(text: str) -> str:
    return f'<td class="text">{_text(text)}</td>'


def _figure(drawn: DrawnFigure) -> str:
    # an image of its own keeps the identifiers inside one SVG apart from those of the next
    source = base64.b64encode(drawn.svg_text).decode()
    kind = ' class="broad"' if drawn.is_broad else ""
    return (
        f'<figure{kind}><img alt="{_text(drawn.caption)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{_text(drawn.caption)} (<code>{_text(drawn.svg.name)}</code>)</figcaption></figure>"
    )


def _circumstances(record: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    hardware = record["hardware"]
    return (
        f"Python {record['python']}; {versions}; commit {record['commit'] or 'unknown'}. "
        f"{hardware['processor']}, {hardware['cores']} cores, one torch thread, {hardware['system']}. "
        f"The fit took {told['seconds']:.0f} s."
    )


def _text(value: object) -> str:
    return html.escape(str(value))
