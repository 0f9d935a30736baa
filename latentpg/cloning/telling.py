"""What was measured, as plain numbers for ``result.json`` and as lines of text for the report and the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentpg.cloning.measures import Collapse, Measured
from latentpg.cloning.outcomes import Outcome
from latentpg.cloning.preparing import Prepared
from latentpg.evaluation import Likelihood
from latentpg.evaluation.report import as_text
from latentpg.numerics.statistics import Interval


def result_of(built: Prepared, measured: Measured) -> dict[str, Any]:
    """Return everything that was measured as numbers, texts and lists."""
    found = measured.likelihood
    told: dict[str, Any] = {
        "episodes": dict(zip(("train", "validation", "test"), built.split.sizes, strict=True)),
        "likelihood": {
            **_likelihood(found.likelihood),
            "measured_by": found.why,
            "log_jacobian_a_step": measured.log_jacobian,
        },
    }
    if found.annealed is not None:
        told["likelihood"]["annealed"] = _likelihood(found.annealed)
    if measured.curve is not None:
        told["likelihood"]["bounds"] = [
            {"num_particles": point.num_particles, "bias": point.bias, **_interval(point.bound)}
            for point in measured.curve.points
        ]
    if measured.gap is not None:
        told["likelihood"]["gap_on_dreamed_rows"] = _interval(measured.gap.gap)
    if measured.scale is not None:
        told["scale"] = vars(measured.scale)
    if measured.collapse is not None:
        told["collapse"] = _collapse(measured.collapse)
    if measured.outcome is not None:
        told["rollouts"] = outcome_of(measured.outcome)
    return told


def outcome_of(outcome: Outcome) -> dict[str, Any]:
    """Return what roll-outs did as numbers."""
    told: dict[str, Any] = {
        "acting": outcome.acting,
        "episodes": len(outcome.played.returns),
        "mean_return": _interval(outcome.returns),
        "mean_length": float(outcome.played.lengths.double().mean()),
    }
    found = outcome.behaviour
    if found is not None:
        told |= {
            "success": _interval(found.success),
            "mode_entropy": _interval(found.entropy),
            "coverage": found.coverage,
            "smoothed_kl": found.divergence,
            "successes_by_mode": [int(count) for count in found.counts],
        }
    if found is not None and found.contexts is not None:
        each = found.contexts
        told["contexts"] = {
            "number": each.num_contexts,
            "without_success": each.num_failed,
            "entropy_where_solved": _interval(each.solved),
            "entropy_everywhere": _interval(each.every),
        }
    if outcome.sensitivity:
        told["by_source_of_z"] = {name: _interval(each) for name, each in outcome.sensitivity.items()}
    return told


def lines_of(measured: Measured) -> list[str]:
    """Say what was measured, one line a number."""
    lines = measured.likelihood.lines()
    lines.append(f"  in the data's units: {measured.log_jacobian:.3f} nats a step are the Jacobian's")
    if measured.gap is not None:
        lines += measured.gap.lines()
    if measured.scale is not None:
        lines += measured.scale.lines()
    if measured.collapse is not None:
        lines += collapse_lines(measured.collapse)
    if measured.outcome is not None:
        lines += outcome_lines(measured.outcome)
    return lines


def collapse_lines(collapse: Collapse) -> list[str]:
    """Say how the latent is used."""
    lines = []
    if collapse.units is not None:
        units = collapse.units
        for name, values in units.kl.items():
            each = " ".join(f"{value:.2f}" for value in values.tolist())
            lines.append(f"KL of latent {name}: {units.whole[name]:.2f} nats a row; by dimension {each}")
        if units.activity:
            total = sum(len(values) for values in units.activity.values())
            lines.append(f"{units.active} of {total} Gaussian dimensions active")
    if collapse.information is not None:
        found = collapse.information
        cap = " (at its cap: there may be more)" if found.saturated else ""
        lines.append(
            f"I(z; a | s) between {as_text(found.lower)} and {as_text(found.upper)} nats, the lower one at most "
            f"log K = {found.cap:.2f}{cap}"
        )
    if collapse.mismatch is not None:
        miss = collapse.mismatch
        lines.append(
            f"prior against aggregate posterior: squared MMD {miss.mmd:.4f}, {miss.null:.4f} at most in 95 % of "
            f"exchanges if they were one, p = {miss.p_value:.3f}"
        )
    return [*lines, *(f"not measured, {why}" for why in collapse.why_not)]


def outcome_lines(outcome: Outcome) -> list[str]:
    """Say what roll-outs did."""
    head = f"{len(outcome.played.returns)} roll-outs, {outcome.acting}: mean return {as_text(outcome.returns)}"
    lines = [head, *([] if outcome.behaviour is None else outcome.behaviour.lines())]
    if outcome.behaviour is not None and outcome.behaviour.contexts is None:
        starts = len(outcome.played.starts.unique(dim=0))
        lines.append("one initial state" if starts == 1 else "nothing is known of what happens in one initial state")
    what = "mean return" if outcome.behaviour is None else "success"
    for name, each in outcome.sensitivity.items():
        lines.append(f"{what} with z from {_SOURCE[name]} {as_text(each)}")
    return lines


_SOURCE: Mapping[str, str] = {
    "prior": "the prior",
    "prior-mean": "the prior's middle",
    "posterior": "the guide on what was learnt from",
}


def _likelihood(found: Likelihood) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "method": found.method,
        "rows": len(found.log_prob),
        "a_row": _interval(found.per_row),
        "a_dimension": _interval(found.per_dimension),
    }


def _collapse(collapse: Collapse) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if collapse.units is not None:
        units = collapse.units
        told["kl"] = {name: values.tolist() for name, values in units.kl.items()}
        told["kl_whole"] = dict(units.whole)
        told["activity"] = {name: values.tolist() for name, values in units.activity.items()}
        told["active_units"] = units.active
    if collapse.information is not None:
        found = collapse.information
        told["information"] = {"lower": _interval(found.lower), "upper": _interval(found.upper), "cap": found.cap}
    if collapse.mismatch is not None:
        told["mismatch"] = vars(collapse.mismatch)
    if collapse.why_not:
        told["not_measured"] = list(collapse.why_not)
    return told


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
