"""Gradient fits of any critic: epochs of minibatches on rows, and rounds of them on targets that follow the critic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics._checks import positive, same_shape
from latentpg.policies.common import check_sizes
from latentpg.values.critics import Critic
from latentpg.values.losses import clipped_value_loss, value_loss
from latentpg.values.targets import Experience, Target


@dataclass(frozen=True)
class CriticFit:
    """How a fit went."""

    losses: tuple[float, ...]
    """Mean loss of every epoch, each minibatch as it was before its step."""
    explained_variance: float
    r"""Of the rows after the fit, :math:`1 - \mathrm{Var}[y - V] / \mathrm{Var}[y]`; NaN where targets are constant."""


def fit_critic(
    critic: Critic,
    obs: Float[Tensor, "M S"],
    target: Float[Tensor, " M"],
    *,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float | int = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    clip_range: float | int | None = None,
    max_grad_norm: float | int | None = None,
) -> CriticFit:
    """Fit a critic to targets by Adam on shuffled minibatches, in place.

    An ``optimizer`` given keeps its moments between calls, and then ``learning_rate`` is its own. ``clip_range``
    takes :func:`~latentpg.values.losses.clipped_value_loss` around the values of before the fit. ``max_grad_norm``
    scales longer gradients down. Rows are shuffled by the ambient random stream.

    A loss or gradient that is not finite is refused before the step, so that the parameters stay as they were after the
    last good one.

    >>> from latentpg.values.critics import LinearCritic
    >>> from latentpg.values.features import Identity
    >>> critic = LinearCritic(Identity(1))
    >>> fit = fit_critic(critic, torch.ones(8, 1), torch.full((8,), 3.0), epochs=200, learning_rate=0.1)
    >>> round(critic.weight.item(), 3)
    3.0
    """
    _check_fit(obs, target, learning_rate, max_grad_norm)
    check_sizes("fit_critic()", epochs=epochs, batch_size=batch_size)
    parameters = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    steps = torch.optim.Adam(parameters, lr=learning_rate) if optimizer is None else optimizer
    with torch.no_grad():
        old_value = critic(obs)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(obs), device=obs.device).split(batch_size):
            value = critic(obs[rows])
            loss = _rows_of_loss(value, old_value[rows], target[rows], clip_range).mean()
            _step(steps, parameters, loss, max_grad_norm)
            total += loss.item() * len(rows)
        losses.append(total / len(obs))
    with torch.no_grad():
        return CriticFit(tuple(losses), explained_variance(critic(obs), target))


def fit_to_targets(
    critic: Critic,
    experience: Experience,
    target: Target,
    *,
    rounds: int = 1,
    epochs: int = 1,
    batch_size: int = 256,
    learning_rate: float | int = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    max_grad_norm: float | int | None = None,
) -> tuple[CriticFit, ...]:
    """Compute the targets from the critic as it is, fit it to them by :func:`fit_critic`, and do so ``rounds`` times.

    One Adam serves all rounds, unless an ``optimizer`` is given. The targets are constants within a round, so that no
    gradient runs through a bootstrap. Where nothing is cut, one round of
    :class:`~latentpg.values.targets.MonteCarlo` is all that target needs; a bootstrapped one needs as many rounds as
    values take to travel.
    """
    check_sizes("fit_to_targets()", rounds=rounds)
    obs = experience.obs.flatten(0, 1)
    steps = torch.optim.Adam(critic.parameters(), lr=learning_rate) if optimizer is None else optimizer
    fits = []
    for _ in range(rounds):
        rows = target(critic, experience).flatten()
        fits.append(
            fit_critic(
                critic,
                obs,
                rows,
                epochs=epochs,
                batch_size=batch_size,
                optimizer=steps,
                max_grad_norm=max_grad_norm,
            )
        )
    return tuple(fits)


def explained_variance(value: Float[Tensor, "*B"], target: Float[Tensor, "*B"]) -> float:
    r"""Return :math:`1 - \mathrm{Var}[y - V] / \mathrm{Var}[y]`: 1 for a perfect critic, 0 for a constant one.

    NaN where the targets do not vary.

    >>> round(explained_variance(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])), 4)  # 1 - (2/9) / (2/3)
    0.6667
    """
    same_shape("explained_variance()", "target", target, "value", value)
    if bool((target == target.flatten()[0]).all()):
        return math.nan
    return (1.0 - (target - value).var(correction=0) / target.var(correction=0)).item()


def _rows_of_loss(value: Tensor, old_value: Tensor, target: Tensor, clip_range: float | int | None) -> Tensor:
    if clip_range is None:
        return value_loss(value, target)
    return clipped_value_loss(value, old_value, target, clip_range=clip_range)


def _step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor, max_grad_norm: float | int | None
) -> None:
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.nn.utils.get_total_norm(gradients)
    if not bool(loss.isfinite() & norm.isfinite()):
        raise OptionError(
            "fit_critic()",
            "the loss or its gradient is NaN or infinite; this step was not taken",
            expected="finite numbers",
            got=f"loss {loss.item():.3g}, gradient norm {norm.item():.3g}",
            fix="a smaller learning rate, targets and observations of order one, or max_grad_norm",
        )
    scale = 1.0 if max_grad_norm is None else (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient * scale
    optimizer.step()
    optimizer.zero_grad()


def _check_fit(obs: Tensor, target: Tensor, learning_rate: float | int, max_grad_norm: float | int | None) -> None:
    if obs.ndim != 2 or not len(obs) or target.shape != obs.shape[:1]:
        raise ShapeError(
            "fit_critic()",
            "`obs` and `target`",
            expected="[M, S] and [M], at least one row",
            got=f"{list(obs.shape)} and {list(target.shape)}",
            fix="obs.flatten(0, 1), target.flatten() for steps [T, N, S] and [T, N]",
        )
    for name, part in (("obs", obs), ("target", target)):
        if not part.isfinite().all():
            raise OptionError("fit_critic()", f"`{name}` holds NaN or infinity", expected="finite numbers")
    for name, number in (("learning_rate", learning_rate), ("max_grad_norm", max_grad_norm)):
        if number is not None:
            positive("fit_critic()", name, number)
