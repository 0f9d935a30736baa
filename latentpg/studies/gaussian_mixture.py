r"""The mixture of "Revisiting Reweighted Wake-Sleep" (Le, Kosiorek, Siddharth, Teh and Wood, 2019), as a policy.

.. math::

    p_\phi(z) \propto e^{\phi_z / 2}, \qquad p(a|z) = \mathcal N(a; 10 z, 5^2), \qquad
    q_\psi(z|a) \propto e^{f_\psi(a)_z}, \qquad z = 0..19,

where the action is the data point and there is nothing to observe. The data come from weights proportional to z + 5,
and the prior starts as good as empty where the data are heaviest: logits 38, 36, ..., 0. A guide that learns
from its own particles finds those components only if something sends it there, which is what the paper compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators import Exact
from latentpg.estimators.guides import Wake
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies.common import check_action_given
from latentpg.policies.networks import MLP
from latentpg.programs import Categorical
from latentpg.studies.problem import Problem, Rows, Trainee
from latentpg.studies.references import EnumeratedPosterior
from latentpg.studies.training import fit

SPACING = 10.0
"""Distance between the means of neighbouring components."""

SCALE = 5.0
"""Standard deviation of every component."""

MULTIPLIER = 0.5
"""What the prior's logits are multiplied by before the softmax."""

STARTS = ("reversed", "ones", "true")
"""Where the prior's logits may start: see :class:`MixtureModel`."""


class MixtureModel(nn.Module):
    r"""Prior logits phi ``[C]``, a fixed decoder (no theta) and a 1-16-16-C tanh guide psi; see the module's docstring.

    ``start`` is ``"reversed"``, logits :math:`2(C-1), \dots, 2, 0`; ``"ones"``; or ``"true"``, the weights of the
    data. Observations are dummies ``[B, 1]``, actions ``[B]``, and the latent ``"z"`` is a category.

    >>> from latentpg.programs import act
    >>> act(MixtureModel(), torch.zeros(5, 1)).action.shape
    torch.Size([5])
    """

    means: Tensor

    def __init__(self, *, num_components: int = 20, start: str = "reversed", hidden: Sequence[int] = (16, 16)) -> None:
        """Draw the guide's weights, as torch does, and place everything else."""
        super().__init__()
        self.logits = nn.Parameter(start_logits(start, num_components))
        self.register_buffer("means", SPACING * torch.arange(num_components, dtype=self.logits.dtype))
        self.guide_net = MLP(1, hidden, num_components)

    def model(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """Sample the component, then the point."""
        z = pyro.sample("z", Categorical(MULTIPLIER * self.logits))
        return pyro.sample("action", dist.Normal(self.means[z], SCALE, validate_args=False), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> Tensor:
        """Sample the component, knowing the point."""
        return pyro.sample("z", Categorical(self.guide_net(check_action_given(action).unsqueeze(-1))))

    def weights(self) -> Float[Tensor, " C"]:
        """Return the prior's probabilities."""
        return (MULTIPLIER * self.logits).softmax(0)

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi."""
        return [self.logits]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return none: the components are known."""
        return []

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return list(self.guide_net.parameters())


def true_weights(num_components: int = 20) -> Float[Tensor, " C"]:
    r"""Return the weights behind the data, :math:`\propto c + 5` for c = 0..C-1.

    >>> true_weights(2)
    tensor([0.4545, 0.5455])
    """
    weights = torch.arange(num_components, dtype=torch.get_default_dtype()) + 5
    return weights / weights.sum()


def start_logits(start: str, num_components: int) -> Float[Tensor, " C"]:
    """Return logits ``[C]`` to start from, by name.

    >>> start_logits("reversed", 3)
    tensor([4., 2., 0.])
    """
    if num_components < 2:
        raise OptionError("MixtureModel()", "`num_components`", expected="an integer >= 2", got=repr(num_components))
    if start == "reversed":
        return 2 * torch.arange(num_components, dtype=torch.get_default_dtype()).flip(0)
    if start == "ones":
        return torch.ones(num_components)
    if start == "true":
        return true_weights(num_components).log() / MULTIPLIER
    raise OptionError(
        "MixtureModel()", "`start`", expected=", ".join(STARTS), got=repr(start), fix=did_you_mean(start, STARTS)
    )


def draw_points(num_points: int, num_components: int = 20) -> tuple[Tensor, Tensor]:
    """Draw points from the true mixture: dummy observations ``[B, 1]`` and actions ``[B]``."""
    components = torch.multinomial(true_weights(num_components), num_points, replacement=True)
    return torch.zeros(num_points, 1), SPACING * components + SCALE * torch.randn(num_points)


def endless_batches(batch_size: int = 100, num_components: int = 20) -> Iterator[Rows]:
    """Draw fresh batches from the true mixture for as long as they are asked for."""
    while True:
        yield draw_points(batch_size, num_components)


def weight_distance(policy: MixtureModel) -> Float[Tensor, ""]:
    r"""Return :math:`\lVert p_\phi - p_{true}\rVert_2`, the paper's measure of the model."""
    with torch.no_grad():
        weights = policy.weights()
        return (weights - true_weights(len(weights)).to(weights.dtype)).norm()


def guide_distance(policy: MixtureModel, points: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    r"""Return :math:`\frac1B\sum_b\lVert q_\psi(\cdot|a_b) - p_{true}(\cdot|a_b)\rVert_2`, the paper's of the guide.

    The posterior is that of the true weights: with a model that has not found them, no guide for it comes near zero.
    :func:`guide_distance_to_model` measures against the posterior of the model as it is.
    """
    return _guide_distance(policy, points, true_weights(len(policy.logits)).to(policy.logits.dtype).log())


def guide_distance_to_model(policy: MixtureModel, points: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    r"""Return :math:`\frac1B\sum_b\lVert q_\psi(\cdot|a_b) - p_\phi(\cdot|a_b)\rVert_2`."""
    return _guide_distance(policy, points, MULTIPLIER * policy.logits.detach())


def mixture_metrics(policy: MixtureModel, points: Float[Tensor, " B"]) -> dict[str, Tensor]:
    """Measure model and guide on test points, by the names of a study's measures."""
    return {
        "weight_distance": weight_distance(policy),
        "guide_distance": guide_distance(policy, points),
        "guide_distance_to_model": guide_distance_to_model(policy, points),
    }


def _guide_distance(policy: MixtureModel, points: Tensor, log_weight: Tensor) -> Float[Tensor, ""]:
    with torch.no_grad():
        likelihood = dist.Normal(policy.means, SCALE).log_prob(points.unsqueeze(-1))
        posterior = (log_weight + likelihood).softmax(-1)
        return (policy.guide_net(points.unsqueeze(-1)).softmax(-1) - posterior).norm(dim=-1).mean()


@dataclass(frozen=True)
class GaussianMixtureData:
    """Points of the true mixture, and a :class:`MixtureModel` at its start or after ``num_steps`` of exact training.

    Training is by enumeration, of model and guide, on fresh batches of ``batch_size`` at ``learning_rate``; what a
    study trains begins at the start, on such batches too, and is measured on the rows. These carry no recorded latent,
    for they are the data's and not the policy's own; posterior draws at its parameters come from ``redraw``.
    """

    num_rows: int = 100
    num_components: int = 20
    start: str = "reversed"
    batch_size: int = 100
    num_steps: int = 0
    learning_rate: float | int = 0.001

    def __post_init__(self) -> None:
        """Check the counts and the start."""
        for name, minimum in (("num_rows", 1), ("num_components", 2), ("batch_size", 1), ("num_steps", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise OptionError(
                    "GaussianMixtureData()", f"`{name}`", expected=f"an integer >= {minimum}", got=repr(value)
                )
        start_logits(self.start, self.num_components)

    def describe(self) -> str:
        """Say what the rows are."""
        return f"{self.num_rows} points of a {self.num_components}-component Gaussian mixture"

    def build(self, seed: int) -> Problem:
        """Draw the points, build the policy, train it if asked to."""
        with seeded(stream_seed(seed, "policy")):
            policy = MixtureModel(num_components=self.num_components, start=self.start)
        with seeded(stream_seed(seed, "points")):
            obs, action = draw_points(self.num_rows, self.num_components)
        if self.num_steps:
            with seeded(stream_seed(seed, "training")):
                self._train(policy)
        facts = {name.replace("_", " "): float(value) for name, value in mixture_metrics(policy, action).items()}
        with seeded(stream_seed(seed, "posterior")):  # listing the support runs the program once
            redraw = EnumeratedPosterior.of(policy, obs, action)

        def trainee() -> Trainee:
            fresh = MixtureModel(num_components=self.num_components, start=self.start)
            batches = endless_batches(self.batch_size, self.num_components)
            return Trainee(fresh, batches, lambda: mixture_metrics(fresh, action))

        return Problem(policy, obs, action, facts=facts, exact=Exact(), redraw=redraw, trainee=trainee)

    def _train(self, policy: MixtureModel) -> None:
        fit(
            policy,
            endless_batches(self.batch_size, self.num_components),
            estimator=Exact(),
            objective=Wake(),
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            record_every=self.num_steps,
            record=dict[str, float],
        )
