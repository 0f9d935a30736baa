"""Which figures a study has: for each, the measure upwards and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

from latentpg.studies.spec import PARTICLES


@dataclass(frozen=True)
class Plot:
    """What one figure shows: a measure against K, or against what ``cost`` names.

    It is drawn in units of the reference's length to the ``power``.
    """

    name: str
    measure: str
    label: str
    power: int
    cost: str | None = None
    cost_label: str = ""
    slope: float | None = None
    is_log: bool = True


PLOTS = (
    Plot("bias", "bias", "bias / ‖reference‖", 1, slope=-1.0),
    Plot("variance", "variance", "variance / ‖reference‖²", 2, slope=-1.0),
    Plot("mse", "mse", "mean squared error / ‖reference‖²", 2, slope=-1.0),
    Plot("snr", "snr", "signal-to-noise ratio", 0, slope=0.5),
    Plot("coordinate_snr", "coordinate_snr", "SNR, averaged over coordinates", 0, slope=0.5),
    Plot("cosine", "cosine", "cosine to the reference", 0, is_log=False),
    Plot("ess", "ess", "effective sample size (particles)", 0),
    Plot("mse_seconds", "mse", "mean squared error / ‖reference‖²", 2, "seconds", "time of one replicate (s)"),
    Plot(
        "mse_evaluations",
        "mse",
        "mean squared error / ‖reference‖²",
        2,
        "likelihood_evaluations",
        "likelihood evaluations a row",
    ),
)
"""Every figure of a facet, in the order of the report."""

X_LABELS = {PARTICLES: "particles K", "drift": "drift: standard deviation of every parameter's move"}
"""What an axis is called below a figure, where its own name is not enough."""
