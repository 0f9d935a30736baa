"""Which figures a study has: for each, the measure upwards and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

from latentpg.studies.procedures import STEP


@dataclass(frozen=True)
class Plot:
    """What one figure shows: a measure against K, or against what ``cost`` names.

    It is drawn in units of the reference's length to the ``power``. ``level`` is the measure of the true value, which
    is drawn as a straight line.
    """

    name: str
    measure: str
    label: str
    power: int
    cost: str | None = None
    cost_label: str = ""
    slope: float | None = None
    is_log: bool = True
    level: str | None = None


OF_ESTIMATES = (
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
"""The figures of an estimate's measures."""

OF_PROCEDURES = (
    Plot("weight_distance", "weight_distance", "‖p(z) − true weights‖", 0),
    Plot("guide_distance", "guide_distance", "mean ‖q(z|a) − true posterior‖", 0),
    Plot("guide_distance_to_model", "guide_distance_to_model", "mean ‖q(z|a) − model's posterior‖", 0),
    Plot("log_likelihood", "log_likelihood", "mean log π(a|s) (nats)", 0, is_log=False),
    Plot("guide_divergence", "guide_divergence", "KL(posterior ‖ guide) (nats)", 0),
    Plot("fitted_mean", "fitted_mean", "mean of the fitted Gaussian", 0, is_log=False, level="true_mean"),
    Plot(
        "fitted_variance", "fitted_variance", "variance of the fitted Gaussian", 0, is_log=False, level="true_variance"
    ),
    Plot("stored_gain", "stored_gain", "gain of the surrogate on stored particles", 0),
    Plot("exact_gain", "exact_gain", "gain of the surrogate with the exact ratio", 0, is_log=False),
    Plot("overfit_gap", "overfit_gap", "gain on stored particles − with the exact ratio", 0),
    Plot("fresh_gain", "fresh_gain", "gain of the surrogate on fresh particles", 0, is_log=False),
    Plot("exact_kl", "exact_kl", "exact KL(old ‖ new) (nats)", 0),
    Plot("ratio_mean", "ratio_mean", "mean ratio", 0, is_log=False),
    Plot("ratio_variance", "ratio_variance", "variance of the ratio", 0),
    Plot("ratio_kl", "ratio_kl", "mean of −log ratio (nats)", 0),
    Plot("ratio_k3", "ratio_k3", "mean of ratio − 1 − log ratio (nats)", 0),
    Plot("clip_plus", "clip_plus", "PPO-clip surrogate at A = +1", 0, is_log=False),
    Plot("clip_minus", "clip_minus", "PPO-clip surrogate at A = −1", 0, is_log=False),
)
"""The figures of procedures' measures."""

PLOTS = (*OF_ESTIMATES, *OF_PROCEDURES)
"""Every figure, in the order of the report; a page has those of which something was measured."""

PLOT_NAMES = tuple(plot.name for plot in PLOTS)
"""The names of all figures."""

X_LABELS = {
    "num_particles": "particles K",
    STEP: "step",
    "reward_offset": "offset of the rewards",
    "num_latents": "values of the latent",
    "span": "span of a latent (steps)",
    "drift": "drift: standard deviation of every parameter's move",
}
"""What an axis is called below a figure, where its own name is not enough."""
