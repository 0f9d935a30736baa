r"""Discrete toys drawn at random: softmax tables on which everything can be enumerated, at a guide quality of choice.

Each row has a state, and so tables, of its own: no row's error can hide behind another's. With ``span`` steps a row
the latent is drawn once for all of them,

.. math:: \pi(a_{1:T}|s) = \sum_z p_\phi(z|s) \prod_t p_\theta(a_t|s,t,z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError, did_you_mean
from latentpg.estimators import Exact
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.oracles import TabularLatentPolicy
from latentpg.programs import Categorical, LatentPolicy, Observations, Span, act
from latentpg.studies.guides import train_guide
from latentpg.studies.problem import Problem
from latentpg.studies.references import EnumeratedPosterior, enumerated_facts

GuideQuality = Literal["random", "prior", "exact", "trained"]
"""What a toy's guide is: tables drawn at random, the prior, the posterior, or random ones after some training."""


class SpanSoftmaxPolicy(nn.Module):
    r"""Softmax tables with one categorical latent ``z`` for a row of T steps, as Pyro programs; parameters are float64.

    .. math:: q_\psi(z|s,a) \propto \exp\Big(\psi^0_{sz} + \sum_t m_t\, \psi_{s t a_t z}\Big)

    with m the mask of executed steps. The posterior is of this form, at :math:`\psi^0 = \log p_\phi(z|s)` and
    :math:`\psi_{staz} = \log p_\theta(a|s,t,z)`. Observations are :class:`~latentpg.programs.Span` with the state's
    index in ``obs[..., 0]``; actions are int64 ``[B, T]``.

    >>> policy = SpanSoftmaxPolicy(torch.zeros(1, 2), torch.zeros(1, 3, 2, 4))
    >>> rows = Span(torch.zeros(1, 3, 1), torch.tensor([[True, True, False]]))
    >>> act(policy, rows).log_joint.exp()  # 1/2 for the latent, 1/4 for each of the two steps
    tensor([0.0312], dtype=torch.float64)
    """

    def __init__(
        self,
        prior_logits: Float[Tensor, "S C"],
        decoder_logits: Float[Tensor, "S T C A"],
        guide_start: Float[Tensor, "S C"] | None = None,
        guide_steps: Float[Tensor, "S T A C"] | None = None,
    ) -> None:
        """Copy the tables into float64 parameters; a guide that is not given is uniform."""
        super().__init__()
        states, steps, latents, actions = decoder_logits.shape
        if guide_start is None:
            guide_start = prior_logits.new_zeros(states, latents)
        if guide_steps is None:
            guide_steps = decoder_logits.new_zeros(states, steps, actions, latents)
        self.prior_logits = _table("prior_logits", prior_logits, states, latents)
        self.decoder_logits = _table("decoder_logits", decoder_logits, states, steps, latents, actions)
        self.guide_start = _table("guide_start", guide_start, states, latents)
        self.guide_steps = _table("guide_steps", guide_steps, states, steps, actions, latents)

    def model(self, obs: Span, action: Tensor | None = None) -> Tensor:
        """Sample ``z [..., B]`` from the prior, then the actions ``[..., B, T]``; padding counts for nothing."""
        states, time = obs.obs[..., 0].long(), torch.arange(obs.mask.shape[1], device=obs.mask.device)
        z = pyro.sample("z", Categorical(self.prior_logits[states[:, 0]]))
        steps = Categorical(self.decoder_logits[states, time, z.unsqueeze(-1)])
        return pyro.sample("action", steps.mask(obs.mask).to_event(1), obs=action)

    def guide(self, obs: Span, action: Tensor | None) -> Tensor:
        """Sample ``z`` from the guide, knowing all actions of the row; return it."""
        if action is None:
            raise ShapeError("SpanSoftmaxPolicy.guide()", "`action`", expected="the actions taken, [B, T]", got="None")
        states, time = obs.obs[..., 0].long(), torch.arange(obs.mask.shape[1], device=obs.mask.device)
        seen = self.guide_steps[states, time, action] * obs.mask.unsqueeze(-1)
        return pyro.sample("z", Categorical(self.guide_start[states[:, 0]] + seen.sum(1)))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Return phi."""
        return [self.prior_logits]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return theta."""
        return [self.decoder_logits]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Return psi."""
        return [self.guide_start, self.guide_steps]


@dataclass(frozen=True)
class RandomToys:
    r"""Rows (s, a, z) that tables with logits from N(0, scale²) produce by acting once in each of ``num_rows`` states.

    With ``span`` T > 1 a row is T steps with one latent, of which row b executes the first T - (b mod T); the rest is
    masked padding.

    ``guide`` says what the guide is. ``random`` tables are drawn as the model's; ``prior`` and ``exact`` equal the
    prior and the posterior for every action; ``trained`` is ``random`` after ``guide_steps`` full-batch steps of Adam
    at ``guide_learning_rate`` on ``guide_objective``. A table has a state a row, so that ``recorded``, which looks at
    one latent a row, ends on that very latent; ``wake``, which looks at the guide's own draws, can end where it draws
    one latent only. The guide's tables can hold the posterior, which the default's optimum is. Model, actions and
    latents are the same whatever the guide.

    ``actions = "every"`` has a row for each state with each action, weighted by the policy's own probability of it in
    place of one that was drawn: averages over rows are then expectations over what the policy does, in which a
    reward's offset has no gradient.
    """

    num_rows: int = 32
    num_latents: int = 4
    num_actions: int = 3
    span: int = 1
    scale: float | int = 1.0
    actions: Literal["drawn", "every"] = "drawn"
    guide: GuideQuality = "random"
    guide_objective: str = "elbo"
    guide_steps: int = 100
    guide_learning_rate: float | int = 0.05

    def __post_init__(self) -> None:
        """Check the counts and names."""
        for name, least in (("num_rows", 1), ("num_latents", 1), ("num_actions", 2), ("span", 1), ("guide_steps", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError("RandomToys()", f"`{name}`", expected=f"an integer >= {least}", got=repr(value))
        for name in ("scale", "guide_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise OptionError("RandomToys()", f"`{name}`", expected="a number > 0", got=repr(getattr(self, name)))
        if self.actions not in ("drawn", "every") or (self.actions == "every" and self.span > 1):
            raise OptionError(
                "RandomToys()", "`actions`", expected="drawn, or every where span is 1", got=repr(self.actions)
            )
        if self.guide not in get_args(GuideQuality):
            raise OptionError(
                "RandomToys()",
                "unknown guide quality",
                expected=f"one of {', '.join(get_args(GuideQuality))}",
                got=repr(self.guide),
                fix=did_you_mean(str(self.guide), get_args(GuideQuality)),
            )

    def describe(self) -> str:
        """Say what the rows are."""
        steps = f" of {self.span} steps" if self.span > 1 else ""
        rows = "rows" if self.actions == "drawn" else "states, every action by its probability,"
        return (
            f"{self.num_rows} {rows}{steps} of random softmax tables, {self.num_latents} latents, "
            f"{self.num_actions} actions, logits of scale {self.scale:g}, {self._guide_in_words()} guide"
        )

    def build(self, seed: int) -> Problem:
        """Draw the tables, act, set the guide."""

        def normal(*shape: int) -> Tensor:
            return self.scale * torch.randn(*shape, dtype=torch.float64)

        with seeded(stream_seed(seed, "policy")):
            policy = self._draw(normal)
        obs = self._observations()
        with seeded(stream_seed(seed, "act")):
            acted = act(policy, obs)
        action, latents, weights = acted.action, acted.latents, None
        if self.actions == "every":
            action = torch.arange(self.num_actions).repeat(self.num_rows)
            obs = torch.arange(self.num_rows).repeat_interleave(self.num_actions)
            weights = _log_pi(policy, obs, action).exp() / self.num_rows
            with seeded(stream_seed(seed, "latents")):
                latents = EnumeratedPosterior.of(policy, obs, action)()
        with seeded(stream_seed(seed, "guide")):
            _set_guide(policy, self.guide, normal)
            if self.guide == "trained":
                train_guide(
                    policy,
                    obs,
                    action,
                    latents,
                    objective=self.guide_objective,
                    steps=self.guide_steps,
                    learning_rate=self.guide_learning_rate,
                )
        return Problem(
            policy,
            obs,
            action,
            latents,
            {"guide": self._guide_in_words(), **enumerated_facts(policy, obs, action)},
            exact=Exact(),
            redraw=EnumeratedPosterior.of(policy, obs, action),
            seed=seed,
            every_action=torch.arange(self.num_actions) if self.span == 1 and self.actions == "drawn" else None,
            weights=weights,
        )

    def _draw(self, normal: Callable[..., Tensor]) -> TabularLatentPolicy | SpanSoftmaxPolicy:
        prior = normal(self.num_rows, self.num_latents)
        if self.span == 1:
            return TabularLatentPolicy(prior, normal(self.num_rows, self.num_latents, self.num_actions))
        return SpanSoftmaxPolicy(prior, normal(self.num_rows, self.span, self.num_latents, self.num_actions))

    def _observations(self) -> Observations:
        states = torch.arange(self.num_rows)
        if self.span == 1:
            return states
        executed = torch.arange(self.span) < self.span - (states % self.span).unsqueeze(1)
        return Span(states.double()[:, None, None].expand(-1, self.span, 1).clone(), executed)

    def _guide_in_words(self) -> str:
        if self.guide != "trained":
            return self.guide
        return f"trained ({self.guide_steps} steps of Adam, rate {self.guide_learning_rate:g}, {self.guide_objective})"


def _log_pi(policy: LatentPolicy, obs: Observations, action: Tensor) -> Tensor:
    with torch.no_grad():
        return Exact().estimate(policy, obs, action, Exact().propose(policy, obs, action)).log_prob


def _set_guide(
    policy: TabularLatentPolicy | SpanSoftmaxPolicy, quality: GuideQuality, normal: Callable[..., Tensor]
) -> None:
    """Fill the guide's tables."""
    with torch.no_grad():
        log_prior = policy.prior_logits.log_softmax(-1)
        log_decoder = policy.decoder_logits.log_softmax(-1).transpose(-1, -2)  # [..., A, C]
        match policy, quality:
            case _, "random" | "trained":
                for table in policy.guide_parameters():
                    table.copy_(normal(*table.shape))
            case TabularLatentPolicy(), "prior":
                policy.guide_logits.copy_(log_prior.unsqueeze(1).expand_as(policy.guide_logits))
            case TabularLatentPolicy(), "exact":
                policy.guide_logits.copy_(log_prior.unsqueeze(1) + log_decoder)
            case SpanSoftmaxPolicy(), _:
                policy.guide_start.copy_(log_prior)
                policy.guide_steps.copy_(log_decoder if quality == "exact" else torch.zeros_like(log_decoder))


def _table(name: str, table: Tensor, *shape: int) -> nn.Parameter:
    if tuple(table.shape) != shape:
        raise ShapeError("SpanSoftmaxPolicy()", f"`{name}`", expected=str(list(shape)), got=str(list(table.shape)))
    return nn.Parameter(table.detach().double().clone())
