"""Learn from demonstrations: objectives over them, the fit, EM, densities, and what a fit has to show for itself."""

from latentpg.imitation.ascent import Ascent, Climbed
from latentpg.imitation.bounds import ImportanceBound, VariationalBound
from latentpg.imitation.cloner import Cloner
from latentpg.imitation.density import GaussianMixture, maximize_mixture, mixture_log_joint
from latentpg.imitation.divergences import GuideTerms, guide_terms, unit_kl
from latentpg.imitation.em import ClosedFormMaximizer, EMFit, EMStep, ExpectationMaximization, em_step, fit_em
from latentpg.imitation.fitting import Fitted, fit
from latentpg.imitation.implied import ImpliedScale, effective_scale, implied_scale
from latentpg.imitation.measuring import HeldOut, held_out
from latentpg.imitation.objectives import (
    ClassicWakeSleep,
    Estimated,
    Losses,
    MaximumLikelihood,
    Objective,
    ReweightedWakeSleep,
    ScoreClimbing,
)
from latentpg.imitation.options import FitOptions
from latentpg.imitation.per_datum import AmortisationGap, LocalPolicy, PerDatum, amortisation_gap, fit_per_datum
from latentpg.imitation.registry import OBJECTIVES, make_objective
from latentpg.imitation.rows import FitRows, executed_rows, point_rows, span_rows, step_rows, with_noise
from latentpg.imitation.watching import mean_log_prob, support_size

__all__ = [
    "OBJECTIVES",
    "AmortisationGap",
    "Ascent",
    "ClassicWakeSleep",
    "Climbed",
    "Cloner",
    "ClosedFormMaximizer",
    "EMFit",
    "EMStep",
    "Estimated",
    "ExpectationMaximization",
    "FitOptions",
    "FitRows",
    "Fitted",
    "GaussianMixture",
    "GuideTerms",
    "HeldOut",
    "ImpliedScale",
    "ImportanceBound",
    "LocalPolicy",
    "Losses",
    "MaximumLikelihood",
    "Objective",
    "PerDatum",
    "ReweightedWakeSleep",
    "ScoreClimbing",
    "VariationalBound",
    "amortisation_gap",
    "effective_scale",
    "em_step",
    "executed_rows",
    "fit",
    "fit_em",
    "fit_per_datum",
    "guide_terms",
    "held_out",
    "implied_scale",
    "make_objective",
    "maximize_mixture",
    "mean_log_prob",
    "mixture_log_joint",
    "point_rows",
    "span_rows",
    "step_rows",
    "support_size",
    "unit_kl",
    "with_noise",
]
