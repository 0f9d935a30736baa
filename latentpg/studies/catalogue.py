"""Every quantity that a study may measure: what it is called, what it is, and in which unit it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A measured quantity: what it is called, what it is, and in which unit it comes."""

    label: str
    meaning: str
    unit: str


OF_ESTIMATES: Mapping[str, Measure] = {
    "reference_norm": Measure("reference", "length of the exact value or gradient", "nats"),
    "bias": Measure("bias", "length of the mean error, the replicates' noise taken off", "nats"),
    "noise_floor": Measure("noise floor", "length that the mean error has by chance alone, √(variance / R)", "nats"),
    "variance": Measure("variance", "variance of one replicate, summed over coordinates", "nats²"),
    "mse": Measure("mean squared error", "mean squared distance of one replicate from the reference", "nats²"),
    "snr": Measure("signal-to-noise ratio", "length of the mean over the square root of the variance", "1"),
    "coordinate_snr": Measure("coordinate SNR", "|mean| over standard deviation, averaged over coordinates", "1"),
    "cosine": Measure("cosine", "mean cosine between one gradient and the exact one", "1"),
    "ess": Measure("effective sample size", "(Σw)² / Σw², averaged over rows", "particles"),
    "seconds": Measure("time", "median time of one replicate: propose, estimate, backward; one thread", "s"),
    "likelihood_evaluations": Measure(
        "likelihood evaluations", "evaluations of log p(z, a | s) for one replicate", "per row"
    ),
}
"""What is measured of an estimate. Gradients are per unit of parameter, so their lengths are in nats."""

OF_PROCEDURES: Mapping[str, Measure] = {
    "weight_distance": Measure("distance of the weights", "length of p(z) less the true weights", "1"),
    "guide_distance": Measure("distance of the guide", "mean length of q(z | a) less the true posterior", "1"),
    "guide_distance_to_model": Measure(
        "distance of the guide to the model", "mean length of q(z | a) less the model's own posterior", "1"
    ),
    "log_likelihood": Measure("log likelihood", "exact log pi(a | s), averaged over rows", "nats"),
    "guide_divergence": Measure("guide's divergence", "KL(posterior || guide), averaged over rows", "nats"),
    "fitted_mean": Measure("fitted mean", "mean of the fitted Gaussian", "1"),
    "fitted_variance": Measure("fitted variance", "variance of the fitted Gaussian", "1"),
    "true_mean": Measure("true mean", "mean of the law that is fitted", "1"),
    "true_variance": Measure("true variance", "variance of the law that is fitted", "1"),
    "stored_gain": Measure("gain on stored particles", "mean surrogate on the particles that were stepped on", "1"),
    "exact_gain": Measure("gain on the exact ratio", "the same surrogate with the exact ratio", "1"),
    "overfit_gap": Measure("overfit", "gain on stored particles less that on the exact ratio", "1"),
    "fresh_gain": Measure("gain on fresh particles", "the same surrogate on particles drawn anew", "1"),
    "exact_kl": Measure("divergence of the policy", "exact KL(old || new), averaged over rows", "nats"),
    "ratio_mean": Measure("mean ratio", "mean over actions and particles", "1"),
    "ratio_variance": Measure("variance of the ratio", "over actions and particles, averaged over rows", "1"),
    "ratio_kl": Measure("mean −log ratio", "KL(old || new) of action and particles where the mean ratio is 1", "nats"),
    "ratio_k3": Measure("k3 of the ratio", "mean of ratio − 1 − log ratio", "nats"),
    "clip_plus": Measure("clipped surrogate, A = +1", "mean of min(ratio, 1 + ε)", "1"),
    "clip_minus": Measure("clipped surrogate, A = −1", "mean of −max(ratio, 1 − ε)", "1"),
}
"""What procedures measure."""

MEASURES: Mapping[str, Measure] = {**OF_ESTIMATES, **OF_PROCEDURES}
"""Every measure by its name in the table."""
