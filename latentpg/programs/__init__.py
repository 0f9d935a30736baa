"""Run Pyro programs: act, propose, score, enumerate. The only room that touches Pyro's effect handlers."""

from latentpg.programs.blocks import log_joint, row_blocks
from latentpg.programs.distributions import Categorical, DiagNormal, MultiBernoulli, MultiCategorical
from latentpg.programs.draws import DrawSource, draw, drawing
from latentpg.programs.policy import LatentPolicy, model_parameters, parameter_dtype
from latentpg.programs.reparam import latents_to_noise, reparameterize
from latentpg.programs.rows import Observations, Span, num_rows, repeat_rows, take_rows
from latentpg.programs.run import (
    Acted,
    Drawn,
    Latents,
    Scores,
    act,
    conditionals,
    draw_guide,
    draw_prior,
    score_guide,
    score_model,
    score_prior,
    support,
)

__all__ = [
    "Acted",
    "Categorical",
    "DiagNormal",
    "DrawSource",
    "Drawn",
    "LatentPolicy",
    "Latents",
    "MultiBernoulli",
    "MultiCategorical",
    "Observations",
    "Scores",
    "Span",
    "act",
    "conditionals",
    "draw",
    "draw_guide",
    "draw_prior",
    "drawing",
    "latents_to_noise",
    "log_joint",
    "model_parameters",
    "num_rows",
    "parameter_dtype",
    "reparameterize",
    "repeat_rows",
    "row_blocks",
    "score_guide",
    "score_model",
    "score_prior",
    "support",
    "take_rows",
]
