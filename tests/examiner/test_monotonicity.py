r"""What more particles do to the ratio of conditional importance sampling, exactly.

For a fixed proposal the ratio with K + 1 particles is a conditional expectation of that with K. So by Jensen the mean
of every convex function of it falls with K, from that of the joint ratio p_new(z, a) / p_old(z, a) at K = 1 towards
that of pi_new / pi_old, and the mean of every concave one rises.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentpg.estimators import ConditionalIS, Guide, Mixture, Prior
from latentpg.numerics.divergences import k1, k3
from latentpg.numerics.surrogates import ppo_clip
from tests.examiner.expectations import EXACT, examine, off_by
from tests.examiner.models import models

EXAMPLES = 13  # of sixteen models each: 208

CONVEX: dict[str, Callable[[Tensor], Tensor]] = {
    "variance": lambda log_ratio: log_ratio.exp().square(),  # the mean of the ratio itself does not depend on K
    "k1 of KL(old || new)": lambda log_ratio: k1(-log_ratio),
    "k3 of KL(old || new)": lambda log_ratio: k3(-log_ratio),
    "minus PPO-clip, advantage 1": lambda log_ratio: -clip(log_ratio, 1.0),
    "minus PPO-clip, advantage -1": lambda log_ratio: -clip(log_ratio, -1.0),
}


def clip(log_ratio: Tensor, advantage: float) -> Tensor:
    return ppo_clip(log_ratio.exp(), torch.full_like(log_ratio, advantage), epsilon=0.2)


@pytest.mark.parametrize("kind", ["step", "span"])
@pytest.mark.parametrize("proposal", [Prior(), Guide(), Mixture(0.25)], ids=repr)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_convex_functions_of_the_ratio_fall_with_k(
    proposal: Prior | Guide | Mixture, kind: str, data: st.DataObject
) -> None:
    model = data.draw(models(kind, sizes=st.integers(2, 3)))
    joint = (model.moved_log_joint() - model.log_joint()).detach()
    means: dict[str, list[Tensor]] = {
        name: [(model.log_posterior().exp() * function(joint)).sum(0)] for name, function in CONVEX.items()
    }
    for num_particles in (1, 2, 3, 4):
        every = examine(model, ConditionalIS(num_particles, proposal), uses_recorded=True)
        if every is None:
            assert num_particles > 2
            continue
        log_ratio = (every.result.moved_log_prob - every.result.log_prob).detach()
        for name, function in CONVEX.items():
            means[name].append(every.expectation(function(log_ratio)))
    for name, function in CONVEX.items():
        at_joint, at_one, *_ = means[name]
        scale = at_joint.abs().clamp(min=1.0)
        assert off_by(at_one / scale, at_joint / scale) < EXACT, name
        marginal = function(model.ratio().log())
        for more, fewer in zip([*means[name][2:], marginal], means[name][1:], strict=True):
            assert bool((more <= fewer + EXACT * scale).all()), name
