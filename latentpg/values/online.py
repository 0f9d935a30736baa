r"""Online TD(0) and TD(λ) for linear critics: one step of the environment, one step of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics._checks import fraction
from latentpg.values.critics import LinearCritic
from latentpg.values.targets import Experience

StepSize = float | int | Callable[[int], float]
"""A constant step size, or one for each step, counted from zero."""


@dataclass(frozen=True)
class OnlineTD:
    """What a pass of online TD leaves: the errors met, and the traces with which the next pass goes on."""

    td_error: Float[Tensor, "T N"]
    trace: Float[Tensor, "N F"]


def online_td(
    critic: LinearCritic,
    experience: Experience,
    *,
    discount: float | int,
    step_size: StepSize,
    trace_decay: float | int = 0.0,
    trace: Float[Tensor, "N F"] | None = None,
    feature_scales: Float[Tensor, " F"] | None = None,
) -> OnlineTD:
    r"""Go through the steps in order and move the weights after each, in place.

    .. math:: e_t = \gamma\lambda\,e_{t-1} + \phi(s_t), \qquad
              \delta_t = r_t + \gamma\,(1-\mathrm{terminated}_t)\,w^\top\phi(s_{t+1}) - w^\top\phi(s_t), \qquad
              w \leftarrow w + \alpha_t\, \delta_t\, e_t

    The eligibility trace :math:`e` accumulates, and is 0 again after the last step of an episode, terminated or
    truncated; only ``terminated`` removes the bootstrap. ``trace_decay`` is λ: 0 is TD(0). N environments move the
    weights by the mean of their :math:`\delta e`. Pass the ``trace`` that came back to go on in the middle of
    episodes. ``feature_scales`` multiplies the step size of each feature
    (:attr:`Fourier.step_scales <latentpg.values.bases.Fourier.step_scales>`).

    With a constant step the weights end up around the fixed point, not in it. With steps whose sum diverges and whose
    squares' sum converges they reach it, for linear features and on-policy steps.

    Source: R. S. Sutton, "Learning to predict by the methods of temporal differences", 1988; J. N. Tsitsiklis and B.
    Van Roy, "An analysis of temporal-difference learning with function approximation", 1997.

    >>> from latentpg.values.features import Identity
    >>> critic, one, no = LinearCritic(Identity(1)), torch.ones(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool)
    >>> step = Experience(one, torch.ones(1, 1), one, terminated=no, truncated=no)
    >>> errors = [online_td(critic, step, discount=0.5, step_size=0.5).td_error.item() for _ in range(3)]
    >>> errors, critic.weight.item()
    ([1.0, 0.75, 0.5625], 1.15625)
    """
    steps, members, _ = experience.obs.shape
    carried = _check(critic, members, discount, trace_decay, trace, feature_scales)
    scales = torch.ones_like(critic.weight) if feature_scales is None else feature_scales.to(critic.weight)
    errors = torch.empty_like(experience.reward)
    with torch.no_grad():
        for t in range(steps):
            phi, following = critic.features(experience.obs[t]), critic.features(experience.next_obs[t])
            later = (following @ critic.weight).masked_fill(experience.terminated[t], 0.0)
            errors[t] = experience.reward[t] + discount * later - phi @ critic.weight
            carried = discount * trace_decay * carried + phi
            change = _size(step_size, t) * scales * (errors[t] @ carried) / members
            _refuse_divergence(change, t)
            critic.weight.add_(change)
            carried = carried.masked_fill(experience.done[t, :, None], 0.0)
    return OnlineTD(errors, carried)


def _size(step_size: StepSize, step: int) -> float:
    size = step_size(step) if callable(step_size) else step_size
    if not (math.isfinite(size) and size > 0.0):
        raise OptionError("online_td()", "`step_size`", expected="a positive number", got=f"{size!r} at step {step}")
    return float(size)


def _refuse_divergence(change: Tensor, step: int) -> None:
    if not change.isfinite().all():
        raise OptionError(
            "online_td()",
            f"the change of the weights at step {step} is NaN or infinite; it was not made",
            expected="finite numbers",
            likely="a step size above 2 / |features|^2",
            fix="a smaller step_size; with J tilings, 0.1 / J",
        )


def _check(
    critic: LinearCritic,
    members: int,
    discount: float | int,
    trace_decay: float | int,
    trace: Tensor | None,
    feature_scales: Tensor | None,
) -> Tensor:
    """Check the options, and return the traces to begin with."""
    fraction("online_td()", "discount", discount)
    fraction("online_td()", "trace_decay", trace_decay)
    size = len(critic.weight)
    if trace is not None and trace.shape != (members, size):
        raise ShapeError("online_td()", "`trace`", expected=f"[N={members}, F={size}]", got=str(list(trace.shape)))
    if feature_scales is not None and feature_scales.shape != (size,):
        raise ShapeError("online_td()", "`feature_scales`", expected=f"[F={size}]", got=str(list(feature_scales.shape)))
    return critic.weight.new_zeros(members, size) if trace is None else trace
