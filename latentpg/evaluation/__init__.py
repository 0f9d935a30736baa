"""Measure a policy on held-out data and in roll-outs: numbers that say what kind they are, and how far they can be off.

Likelihood (exact, or a bound with its gap), use of the latent, and behaviour.
"""

from latentpg.evaluation.ais import Annealing, Sandwich, annealed_likelihood, sandwich
from latentpg.evaluation.behaviour import (
    Behaviour,
    ContextEntropy,
    context_entropy,
    measure_behaviour,
    miller_madow_entropy,
    mode_coverage,
    mode_entropy,
    smoothed_kl,
    wilson_interval,
)
from latentpg.evaluation.clustered import cluster_bootstrap_interval, clustered_interval
from latentpg.evaluation.collapse import (
    Information,
    LatentSource,
    Mismatch,
    Units,
    act_with,
    draw_from_prior,
    from_bank,
    measure_information,
    measure_mismatch,
    measure_sensitivity,
    measure_units,
    prior_mean,
)
from latentpg.evaluation.kernels import HMC, Independence, Kernel, RandomWalk
from latentpg.evaluation.likelihood import (
    IWAECurve,
    IWAEPoint,
    exact_likelihood,
    iwae_curve,
    quadrature_likelihood,
)
from latentpg.evaluation.report import EXACT, LOWER_BOUND, Likelihood, action_scale_of, report_likelihood

__all__ = [
    "EXACT",
    "HMC",
    "LOWER_BOUND",
    "Annealing",
    "Behaviour",
    "ContextEntropy",
    "IWAECurve",
    "IWAEPoint",
    "Independence",
    "Information",
    "Kernel",
    "LatentSource",
    "Likelihood",
    "Mismatch",
    "RandomWalk",
    "Sandwich",
    "Units",
    "act_with",
    "action_scale_of",
    "annealed_likelihood",
    "cluster_bootstrap_interval",
    "clustered_interval",
    "context_entropy",
    "draw_from_prior",
    "exact_likelihood",
    "from_bank",
    "iwae_curve",
    "measure_behaviour",
    "measure_information",
    "measure_mismatch",
    "measure_sensitivity",
    "measure_units",
    "miller_madow_entropy",
    "mode_coverage",
    "mode_entropy",
    "prior_mean",
    "quadrature_likelihood",
    "report_likelihood",
    "sandwich",
    "smoothed_kl",
    "wilson_interval",
]
