r"""Many independent replicates of an estimator's gradient at once, for measuring its bias and variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from latentpg.errors import OptionError, WeightError
from latentpg.estimators.base import Estimator
from latentpg.estimators.guides.base import GuideObjective
from latentpg.programs import LatentPolicy, Latents, Observations, model_parameters

DEFAULT_CHUNK = 128
"""Replicates that run at once; memory grows with it, speed hardly beyond it."""


class _Holder(nn.Module):
    """Lets ``functional_call`` swap a policy's parameters while a function of the policy runs."""

    def __init__(self, policy: nn.Module, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.policy = policy
        self.function = function

    def forward(self) -> Tensor:
        return self.function()


def replicate_gradients(
    policy: LatentPolicy,
    estimator: Estimator,
    obs: Observations,
    action: Tensor,
    latents: Latents | None = None,
    *,
    num_replicates: int,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Float[Tensor, "R P"], Float[Tensor, " R"]]:
    """Draw R gradients of the mean of ``log_prob`` over rows, in theta and phi, and its R values.

    Each replicate proposes afresh. P counts the entries of ``prior_parameters()`` followed by ``decoder_parameters()``.
    Replicates run ``chunk_size`` at a time under ``torch.func.vmap``, an order of magnitude faster than a loop. Nothing
    can be looked at inside ``vmap``: mistakes are looked for in one run outside of it, from a stream of its own, and a
    non-finite result is a :class:`~latentpg.errors.WeightError` afterwards.
    """

    def log_prob() -> Tensor:
        particles = estimator.propose(policy, obs, action, latents)
        return estimator.estimate(policy, obs, action, particles).log_prob.mean()

    return replicate(
        policy, _some(model_parameters(policy)), log_prob, num_replicates=num_replicates, chunk_size=chunk_size
    )


def replicate_guide_gradients(
    policy: LatentPolicy,
    objective: GuideObjective,
    obs: Observations,
    action: Tensor,
    latents: Latents | None = None,
    *,
    num_replicates: int,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Float[Tensor, "R P"], Float[Tensor, " R"]]:
    """Draw R gradients of the mean loss over rows in psi, and its R values; as :func:`replicate_gradients`."""

    def loss() -> Tensor:
        return objective.loss(policy, obs, action, latents=latents).mean()

    return replicate(
        policy, _some(policy.guide_parameters()), loss, num_replicates=num_replicates, chunk_size=chunk_size
    )


def replicate(
    policy: LatentPolicy,
    parameters: Sequence[nn.Parameter],
    function: Callable[[], Float[Tensor, ""]],
    *,
    num_replicates: int,
    chunk_size: int = DEFAULT_CHUNK,
) -> tuple[Float[Tensor, "R P"], Float[Tensor, " R"]]:
    """Draw R gradients and R values of any scalar that draws and runs the policy's programs; as above.

    ``parameters`` are some of the policy's own. Without any, only values are drawn, and gradients are ``[R, 0]``.
    """
    if not isinstance(policy, nn.Module):
        raise OptionError(
            "replicates", "`policy`", expected="an nn.Module", got=type(policy).__name__, fix="from_pyro(model, guide)"
        )
    for option, number in (("num_replicates", num_replicates), ("chunk_size", chunk_size)):
        if not isinstance(number, int) or number < 1:
            raise OptionError("replicates", f"`{option}`", expected="an integer >= 1", got=repr(number))
    holder = _Holder(policy, function)
    names = {id(parameter): name for name, parameter in holder.named_parameters()}
    if not all(id(parameter) in names for parameter in parameters):
        raise OptionError(
            "replicates",
            "the parameters to differentiate in",
            expected="each among `policy.parameters()`",
            got=f"{len(parameters)}, of which {sum(id(p) not in names for p in parameters)} are not the module's own",
            fix="register the networks as attributes of the policy",
        )
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        function()  # out here mistakes are looked for, such as an action outside its support; inside vmap nothing is
    chosen = {names[id(parameter)]: parameter.detach() for parameter in parameters}
    # the others are constants: else every result would keep the graph that leads to them until the last replicate
    constant = {name: parameter.detach() for name, parameter in holder.named_parameters() if name not in chosen}

    def value(overrides: dict[str, Tensor], replicate: Tensor) -> Tensor:
        return functional_call(holder, {**constant, **overrides}, ())

    gradients, values = _transformed(value if not chosen else grad_and_value(value), chosen, num_replicates, chunk_size)
    flat = values.new_zeros(num_replicates, 0)
    if chosen:
        flat = torch.cat([gradients[name].reshape(num_replicates, -1) for name in chosen], 1)
    if not bool(torch.isfinite(flat).all()) or not bool(torch.isfinite(values).all()):
        raise WeightError(
            "replicates",
            "non-finite gradients or values",
            expected="finite results in every replicate",
            got=f"non-finite gradients in {int((~torch.isfinite(flat)).any(1).sum())} of {num_replicates} replicates",
            fix="call the estimator once outside: it names the row and the likely cause",
        )
    return flat.detach(), values.detach()


def _some(parameters: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
    if not parameters:
        raise OptionError(
            "replicates",
            "the parameters to differentiate in",
            expected="at least one, each among `policy.parameters()`",
            got="none",
            fix="register the networks as attributes of the policy",
        )
    return parameters


def _transformed(
    function: Callable[..., Any], chosen: dict[str, Tensor], num_replicates: int, chunk_size: int
) -> tuple[dict[str, Tensor], Tensor]:
    transform = vmap(function, in_dims=(None, 0), randomness="different", chunk_size=chunk_size)
    result = transform(chosen, torch.arange(num_replicates))
    return result if isinstance(result, tuple) else ({}, result)
