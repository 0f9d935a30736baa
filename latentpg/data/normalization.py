r"""Statistics of the training part, as plain numbers, and what they do to observations, actions and densities.

With :math:`\tilde a = (a-\mu)/\sigma` in each dimension, densities are related by

.. math:: \log p(a\mid s) = \log\tilde p(\tilde a\mid s) - \sum_i \log\sigma_i ,

once for each step. A likelihood without that sum cannot be compared between two normalisations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError
from latentpg.errors import OptionError
from latentpg.rollout.normalization import SMALLEST_VARIANCE, ObservationNormalizer

_NAMES = ("obs_mean", "obs_std", "action_mean", "action_std")


@dataclass(frozen=True)
class Normalization:
    """Mean and (population) standard deviation of each dimension; integer actions have none and stay as they are.

    No deviation is below ``floor``, so that what never varies is not divided by zero; :attr:`floored` names such
    dimensions. An action dimension that never varies can be predicted to any precision, and its likelihood then says
    how small the floor was and nothing else.

    >>> demos = Demonstrations.from_episodes([[[0.0], [2.0]]], [[[1.0, 5.0], [3.0, 5.0]]])
    >>> normalization = Normalization.of(demos)
    >>> normalization.action_mean, normalization.action_std, normalization.floored
    ((2.0, 5.0), (1.0, 0.0001), ('action 1',))
    """

    obs_mean: tuple[float, ...]
    obs_std: tuple[float, ...]
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    floor: float = 1e-4

    def __post_init__(self) -> None:
        """Check the numbers, which may come from a file."""
        if not 0 < self.floor < math.inf:
            raise OptionError("Normalization()", "`floor`", expected="a number > 0", got=repr(self.floor), fix="1e-4")
        for kind, mean, std in (
            ("obs", self.obs_mean, self.obs_std),
            ("action", self.action_mean, self.action_std),
        ):
            finite = all(math.isfinite(x) for x in (*mean, *std))
            if len(mean) != len(std) or not finite or any(x < self.floor for x in std):
                raise DataError(
                    "Normalization()",
                    f"`{kind}_mean` and `{kind}_std`",
                    expected=f"finite numbers, as many in both, deviations >= floor={self.floor:g}",
                    got=f"{mean} and {std}",
                )

    @classmethod
    def of(cls, train: Demonstrations, *, floor: float = 1e-4) -> Normalization:
        """Take the statistics of all rows; give it the training part only."""
        obs = _moments(train.obs, floor)
        action = _moments(train.action, floor) if train.action.is_floating_point() else ((), ())
        return cls(*obs, *action, floor)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Normalization:
        """Build again what :meth:`as_dict` gave, after a way through JSON or TOML."""
        missing = [name for name in (*_NAMES, "floor") if name not in content]
        if missing:
            raise DataError(
                "Normalization.from_dict()", f"no {', '.join(missing)}", expected=", ".join((*_NAMES, "floor"))
            )
        lists = [tuple(float(x) for x in content[name]) for name in _NAMES]
        return cls(lists[0], lists[1], lists[2], lists[3], float(content["floor"]))

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def log_jacobian(self) -> float:
        r""":math:`-\sum_i\log\sigma_i` of the actions, what a step's log density of normalised actions lacks, nats.

        >>> demos = Demonstrations.from_episodes([[[0.0], [2.0]]], [[[1.0], [5.0]]])
        >>> round(Normalization.of(demos).log_jacobian, 6)  # a deviation of 2: densities are half as high
        -0.693147
        """
        return -math.fsum(math.log(x) for x in self.action_std)

    @property
    def floored(self) -> tuple[str, ...]:
        """Dimensions whose deviation is the floor."""
        kinds = (("obs", self.obs_std), ("action", self.action_std))
        return tuple(f"{kind} {i}" for kind, std in kinds for i, x in enumerate(std) if x == self.floor)

    def normalize_obs(self, obs: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S"]:
        r"""Return :math:`(s-\mu)/\sigma`."""
        return (obs - _like(obs, self.obs_mean, "obs")) / _like(obs, self.obs_std, "obs")

    def normalize_action(self, action: Tensor) -> Tensor:
        r"""Return :math:`(a-\mu)/\sigma`, or integer actions as they are."""
        if not self.action_std and not action.is_floating_point():
            return action
        return (action - _like(action, self.action_mean, "action")) / _like(action, self.action_std, "action")

    def denormalize_action(self, action: Tensor) -> Tensor:
        r"""Return :math:`\mu+\sigma\tilde a`: what is done where the policy says :math:`\tilde a`."""
        if not self.action_std and not action.is_floating_point():
            return action
        return _like(action, self.action_mean, "action") + action * _like(action, self.action_std, "action")

    def apply(self, demonstrations: Demonstrations) -> Demonstrations:
        """Normalise observations and actions; :attr:`log_jacobian` goes with every step of the result."""
        return replace(
            demonstrations,
            obs=self.normalize_obs(demonstrations.obs),
            action=self.normalize_action(demonstrations.action),
        )

    def encoder(self, *, clip: float | int = 10.0) -> ObservationNormalizer:
        """Return the observation's part as a policy's ``encoder=``: buffers, stored with the policy."""
        normalizer = ObservationNormalizer(len(self.obs_mean), clip=clip)
        normalizer.mean.copy_(torch.tensor(self.obs_mean, dtype=torch.float64))
        variance = torch.tensor(self.obs_std, dtype=torch.float64).square() - SMALLEST_VARIANCE
        normalizer.variance.copy_(variance)
        return normalizer


def _moments(rows: Tensor, floor: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    rows = rows.double()
    std = rows.std(0, correction=0)
    return tuple(rows.mean(0).tolist()), tuple(max(x, floor) for x in std.tolist())


def _like(values: Tensor, numbers: tuple[float, ...], kind: str) -> Tensor:
    if values.ndim == 0 or values.shape[-1] != len(numbers):
        raise DataError(
            "Normalization",
            f"`{kind}` of another size than the statistics",
            expected=f"[..., {len(numbers)}]",
            got=str(list(values.shape)),
        )
    return torch.tensor(numbers, dtype=values.dtype, device=values.device)
