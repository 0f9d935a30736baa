r"""Linear critics in closed form: least squares on given targets, and the fixed point of TD.

Rows may be weighted: with the rows of every transition of a tabular MDP and their probabilities for weights, both give
the exact projections. Solutions are computed in float64; where features are linearly dependent, as in tile coding, the
solution of least norm is taken, which leaves the weight of a cell that was never visited at 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics._checks import fraction, not_negative
from latentpg.values.critics import LinearCritic

_SOLVED = 1e-6  # how far, relative to the right side, a solution may leave the equations of LSTD


def solve_least_squares(
    critic: LinearCritic,
    obs: Float[Tensor, "M S"],
    target: Float[Tensor, " M"],
    *,
    weight: Float[Tensor, " M"] | None = None,
    ridge: float | int = 0.0,
) -> None:
    r"""Set the weights to :math:`\arg\min_w \sum_i \omega_i (w^\top\phi(s_i) - y_i)^2 + \kappa\,\|w\|^2`.

    With Monte Carlo returns for targets it is where gradient Monte Carlo converges to: the projection of
    :math:`V^\pi` onto the features as the states' visits are weighted, up to sampling. ``ridge`` is :math:`\kappa`.

    Source: R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018, section 9.4.

    >>> from latentpg.values.bases import Polynomial
    >>> from latentpg.values.ranges import Ranges
    >>> critic = LinearCritic(Polynomial(Ranges((0.0,), (1.0,)), degree=1))
    >>> solve_least_squares(critic, torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([1.0, 2.0, 3.0]))
    >>> [round(number, 5) for number in critic.weight.tolist()]
    [1.0, 2.0]
    """
    _check_rows("solve_least_squares()", obs, target=target)
    scale = _weights("solve_least_squares()", target, weight, ridge).sqrt()
    phi = _features(critic, obs)
    rows, sides = scale[:, None] * phi, scale * target.detach().double().cpu()
    if ridge > 0.0:
        rows = torch.cat([rows, ridge**0.5 * torch.eye(phi.shape[1], dtype=torch.float64)])
        sides = torch.cat([sides, torch.zeros(phi.shape[1], dtype=torch.float64)])
    critic.load(_least_norm(rows, sides).to(critic.weight))


def solve_lstd(
    critic: LinearCritic,
    obs: Float[Tensor, "M S"],
    reward: Float[Tensor, " M"],
    next_obs: Float[Tensor, "M S"],
    terminated: Bool[Tensor, " M"],
    *,
    discount: float | int,
    weight: Float[Tensor, " M"] | None = None,
    ridge: float | int = 0.0,
) -> None:
    r"""Set the weights to the fixed point of TD(0) on these rows (least-squares temporal differences).

    .. math:: \Big[\sum_i \omega_i \phi_i (\phi_i - \gamma\,(1-\mathrm{terminated}_i)\,\phi_i')^\top + \kappa I\Big]\,w
              = \sum_i \omega_i \phi_i r_i

    On a table of states it is the value function of the process that the rows themselves estimate. With fewer features
    than states it differs from :func:`solve_least_squares` on returns, however many the rows. Equations without a
    solution are refused.

    Source: S. J. Bradtke and A. G. Barto, "Linear least-squares algorithms for temporal difference learning", 1996.

    One state that pays 1 and goes on, with discount 1/2, is worth 2; if its step terminates, 1.

    >>> from latentpg.values.features import Identity
    >>> critic, one = LinearCritic(Identity(1)), torch.ones(1, 1)
    >>> solve_lstd(critic, one, torch.ones(1), one, torch.tensor([False]), discount=0.5)
    >>> round(critic.weight.item(), 6)
    2.0
    """
    where = "solve_lstd()"
    _check_rows(where, obs, reward=reward, next_obs=next_obs, terminated=terminated)
    fraction(where, "discount", discount)
    left = _features(critic, obs) * _weights(where, reward, weight, ridge)[:, None]
    goes_on = (~terminated).double().cpu()[:, None]
    phi, following = _features(critic, obs), _features(critic, next_obs) * goes_on
    matrix = left.T @ (phi - discount * following) + ridge * torch.eye(phi.shape[1], dtype=torch.float64)
    side = left.T @ reward.detach().double().cpu()
    solution = _least_norm(matrix, side)
    miss = (matrix @ solution - side).norm() / side.norm().clamp(min=torch.finfo(torch.float64).tiny)
    if miss > _SOLVED:
        raise OptionError(
            where,
            "the equations have no solution on these rows",
            expected="A w = b",
            got=f"|A w - b| / |b| = {miss:.2g} at best",
            likely="discount 1 with states from which no row terminates",
            fix="a discount below 1, more rows, or ridge=1e-6",
        )
    critic.load(solution.to(critic.weight))


def _features(critic: LinearCritic, obs: Tensor) -> Tensor:
    with torch.no_grad():
        return critic.features(obs).double().cpu()


def _least_norm(matrix: Tensor, side: Tensor) -> Tensor:
    # gelsd finds the rank; the default driver takes it to be full and returns numbers without meaning where it is not
    return torch.linalg.lstsq(matrix, side.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)


def _weights(where: str, rows: Tensor, weight: Tensor | None, ridge: float) -> Tensor:
    not_negative(where, "ridge", ridge)
    if weight is None:
        return torch.ones(len(rows), dtype=torch.float64)
    if weight.shape != rows.shape or not (weight >= 0.0).all():
        raise OptionError(
            where,
            "`weight`",
            expected=f"non-negative numbers, [M={len(rows)}]",
            got=f"{list(weight.shape)}, smallest {weight.min().item():.3g}",
        )
    return weight.double().cpu()


def _check_rows(where: str, obs: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        expected = tuple(obs.shape) if name == "next_obs" else (len(obs),)
        if other.shape != expected:
            raise ShapeError(
                where, f"`{name}`", expected=f"{list(expected)}, the rows of `obs`", got=str(list(other.shape)),
                fix=f"{name}.flatten()" if other.numel() == len(obs) else None,
            )  # fmt: skip
        if other.is_floating_point() and not other.isfinite().all():
            raise OptionError(where, f"`{name}` holds NaN or infinity", expected="finite numbers")
