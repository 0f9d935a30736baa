r"""Annealed importance sampling: a tight lower bound of log pi, and on dreamed data an upper one too.

A chain starts at :math:`z_0 \sim r` and is led to the posterior by kernels :math:`T_t` that leave
:math:`\gamma_t = r^{1-\beta_t} p(\cdot, a|s)^{\beta_t}` as it is, :math:`0 = \beta_0 < \dots < \beta_T = 1`:

.. math:: \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1})\,\big(\log p(z_{t-1}, a|s) - \log r(z_{t-1})\big), \qquad
   z_t \sim T_t(z_{t-1}, \cdot).

Then :math:`\mathbb E\,w = \pi(a|s)`, whatever the kernels do, so that :math:`\log\frac1K\sum_k w_k` is a lower bound in
expectation (R. M. Neal, "Annealed importance sampling", 2001). T = 1 runs no kernel and is importance sampling itself.

**From both sides.** Of an action that the policy itself made, the latent behind it is an exact draw from the posterior.
Let a chain start there and run *back*, through :math:`T_{T-1}, \dots, T_1`: with its weight among those of K - 1 chains
that ran forward, :math:`\mathbb E\,1/\hat w = 1/\pi(a|s)`, and :math:`\log\hat w` is an *upper* bound in expectation.
The gap between the two bounds what the lower one lacks (R. B. Grosse, Z. Ghahramani and R. P. Adams, "Sandwiching the
marginal likelihood using bidirectional Monte Carlo", 2015; the retained chain among fresh ones: C. Andrieu, A. Doucet
and R. Holenstein, "Particle Markov chain Monte Carlo methods", 2010). Data have no such latent: there only the lower
bound stands, and the dreamed gap says how far to trust it as far as the policy resembles the data.

**Tuning** comes from chains of its own (:func:`pilot`) and is fixed before the chains that count: given it, both
statements above hold exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError
from latentpg.estimators import Guide, Proposal
from latentpg.estimators.base import check_log_weights
from latentpg.evaluation.clustered import check_clusters, clustered_interval
from latentpg.evaluation.kernels import HMC, Bridge, Kernel, State
from latentpg.evaluation.likelihood import in_blocks
from latentpg.evaluation.report import LOWER_BOUND, Likelihood, as_text, report_likelihood
from latentpg.numerics.statistics import LEVEL, Interval
from latentpg.numerics.weights import log_mean_exp
from latentpg.programs import LatentPolicy, Latents, Observations, act, num_rows, take_rows
from latentpg.programs.blocks import DEFAULT_BLOCK

PILOT_MOVES = 3
"""Moves of a kernel at each temperature that the pilot tunes its step by."""

_RATE = 1.0
"""How far one move's acceptance moves the logarithm of the step."""


@dataclass(frozen=True)
class Annealing:
    """How to anneal: T temperatures, K chains a row, which kernels at each temperature, and where chains start.

    ``schedule`` places the temperatures: ``"sigmoid"`` puts more of them at both ends, ``"linear"`` spaces them evenly.
    ``pilot_chains`` tune steps and spreads beforehand; 0 leaves the kernels' own step sizes in absolute units.
    """

    num_temperatures: int = 50
    num_chains: int = 16
    kernels: tuple[Kernel, ...] = (HMC(),)
    start: Proposal = field(default_factory=Guide)
    schedule: str = "sigmoid"
    pilot_chains: int = 16

    def __post_init__(self) -> None:
        """Check every number."""
        for name, value, least in (
            ("num_temperatures", self.num_temperatures, 1),
            ("num_chains", self.num_chains, 1),
            ("kernels", len(self.kernels), 1),
        ):
            if value < least:
                raise OptionError("Annealing()", f"`{name}`", expected=f"at least {least}", got=repr(value))
        if self.pilot_chains < 0 or self.pilot_chains == 1:
            raise OptionError(
                "Annealing()", "`pilot_chains`", expected="0, or 2 or more to see a spread", got=repr(self.pilot_chains)
            )
        if self.schedule not in ("linear", "sigmoid"):
            raise OptionError("Annealing()", "`schedule`", expected='"linear" or "sigmoid"', got=repr(self.schedule))

    def temperatures(self) -> list[float]:
        r"""List :math:`\beta_0 = 0, \dots, \beta_T = 1`.

        >>> Annealing(num_temperatures=4, schedule="linear").temperatures()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        """
        line = torch.linspace(0.0, 1.0, self.num_temperatures + 1, dtype=torch.float64)
        if self.schedule == "sigmoid":
            bent = torch.sigmoid(4.0 * (2 * line - 1))
            line = (bent - bent[0]) / (bent[-1] - bent[0])
        return line.tolist()


@dataclass(frozen=True)
class Tuning:
    """Steps ``[B]`` of each kernel and the spread of each site ``[1, B, ...]``, one of each a temperature inside."""

    step: tuple[tuple[Float[Tensor, " B"], ...], ...]
    spread: tuple[Latents, ...]


@dataclass(frozen=True)
class Sandwich:
    """Bounds ``[B]`` of log pi of dreamed actions, from below and from above, in nats and policy coordinates.

    The gap's interval is the number to read: what the same annealing may lack on such data, on average over rows.
    """

    lower: Float[Tensor, " B"]
    upper: Float[Tensor, " B"]
    below: Interval
    above: Interval
    gap: Interval

    def lines(self) -> list[str]:
        """Say it in words."""
        return [
            f"on {len(self.lower)} dreamed rows log pi lies between {as_text(self.below)} and {as_text(self.above)}",
            f"  gap {as_text(self.gap)} nats a row",
        ]


def annealed_likelihood(
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    cluster: Int[Tensor, " B"],
    *,
    annealing: Annealing = Annealing(),
    action_scale: Float[Tensor, "*A"] | None = None,
    level: float = LEVEL,
) -> Likelihood:
    """Bound the held-out likelihood from below by annealing from ``annealing.start`` to the joint."""

    def bound(some: Observations, taken: Tensor) -> Tensor:
        bridge = Bridge.between(annealing.start, policy, some, taken)
        return log_mean_exp(forward(annealing, bridge, pilot(annealing, bridge)).double())

    size = max(annealing.num_chains, annealing.pilot_chains)
    with torch.no_grad():
        values = in_blocks(bound, obs, action, size, block=DEFAULT_BLOCK)
    method = f"annealed importance sampling, T = {annealing.num_temperatures}, K = {annealing.num_chains}"
    return report_likelihood(
        values, obs, action, cluster, kind=LOWER_BOUND, method=method, action_scale=action_scale, level=level
    )


def sandwich(
    policy: LatentPolicy,
    obs: Observations,
    cluster: Int[Tensor, " B"],
    *,
    annealing: Annealing = Annealing(),
    level: float = LEVEL,
) -> Sandwich:
    """Dream an action for every row, and bound its log pi from below and from above."""
    cluster = check_clusters("sandwich()", cluster, num_rows(obs))
    dreamed = act(policy, obs)
    step = max(1, DEFAULT_BLOCK // max(annealing.num_chains, annealing.pilot_chains))
    lower, upper = [], []
    with torch.no_grad():
        for start in range(0, num_rows(obs), step):
            part = slice(start, start + step)
            bridge = Bridge.between(annealing.start, policy, take_rows(obs, part), dreamed.action[part])
            tuning = pilot(annealing, bridge)
            weights = forward(annealing, bridge, tuning).double()
            back = backward(annealing, bridge, tuning, take_rows(dict(dreamed.latents), part)).double()
            lower.append(log_mean_exp(weights))
            # the reversed chain takes the place of one that ran forward
            upper.append(log_mean_exp(torch.cat([back.unsqueeze(0), weights[1:]])))
    low, high = torch.cat(lower), torch.cat(upper)
    return Sandwich(
        low,
        high,
        clustered_interval(low, cluster, level=level),
        clustered_interval(high, cluster, level=level),
        clustered_interval(high - low, cluster, level=level),
    )


def pilot(annealing: Annealing, bridge: Bridge) -> Tuning:
    """Anneal chains of the pilot's own, and note at each temperature a step for each row and kernel, and the spreads.

    A step is moved towards the kernel's target acceptance; the spread of a coordinate is its standard deviation over
    the pilot's chains as they come to the temperature. Both depend on (s, a) and on the pilot's own draws alone.
    """
    _check_kernels(annealing, bridge)
    inside = annealing.temperatures()[1:-1]
    count = annealing.pilot_chains
    state = bridge.begin(max(count, 1))
    check_log_weights("pilot(), before any move", state.log_ratio)
    ones = torch.ones_like(state.log_joint[0])
    flat = {name: torch.ones_like(state.latents[name][:1]) for name in bridge.real}
    if count == 0:
        return Tuning(((ones,) * len(annealing.kernels),) * len(inside), (flat,) * len(inside))
    log_steps, spread = [torch.zeros_like(ones) for _ in annealing.kernels], flat
    steps, spreads = [], []
    for beta in inside:
        spread = {name: _spread(state.latents[name], spread[name]) for name in bridge.real}
        for place, kernel in enumerate(annealing.kernels):
            for _ in range(PILOT_MOVES):
                moved = kernel.move(bridge, state, beta, step=log_steps[place].exp(), spread=spread)
                state = moved.state
                if kernel.target_acceptance is not None:
                    error = moved.acceptance.mean(0) - kernel.target_acceptance
                    log_steps[place] = (log_steps[place] + _RATE * error).clamp(-8.0, 4.0)
        steps.append(tuple(log_step.exp() for log_step in log_steps))
        spreads.append(spread)
    return Tuning(tuple(steps), tuple(spreads))


def forward(annealing: Annealing, bridge: Bridge, tuning: Tuning) -> Float[Tensor, "K B"]:
    r"""Run K chains from the start density up, and return :math:`\log w` of each, with :math:`\mathbb E w = \pi`."""
    betas = annealing.temperatures()
    state = bridge.begin(annealing.num_chains)
    log_weight = (betas[1] - betas[0]) * state.log_ratio
    for t in range(1, len(betas) - 1):
        state = _sweep(annealing, bridge, state, betas[t], tuning, t - 1)
        log_weight = log_weight + (betas[t + 1] - betas[t]) * state.log_ratio
    check_log_weights("annealed importance sampling", log_weight)
    return log_weight


def backward(annealing: Annealing, bridge: Bridge, tuning: Tuning, latents: Latents) -> Float[Tensor, " B"]:
    r"""Run one chain down from exact posterior draws ``[B, ...]``: :math:`\log w` with :math:`\mathbb E\,1/w = 1/\pi`.

    The kernels are reversible, so each is its own reversal; several at a temperature come in the opposite order.
    """
    betas = annealing.temperatures()
    state = bridge.at({name: value.unsqueeze(0) for name, value in latents.items()})
    last = len(betas) - 1
    log_weight = (betas[last] - betas[last - 1]) * state.log_ratio
    for t in range(last - 1, 0, -1):
        state = _sweep(annealing, bridge, state, betas[t], tuning, t - 1, reverse=True)
        log_weight = log_weight + (betas[t] - betas[t - 1]) * state.log_ratio
    check_log_weights("annealed importance sampling, backward", log_weight)
    return log_weight[0]


def _sweep(
    annealing: Annealing,
    bridge: Bridge,
    state: State,
    beta: float,
    tuning: Tuning,
    index: int,
    *,
    reverse: bool = False,
) -> State:
    pairs = list(zip(annealing.kernels, tuning.step[index], strict=True))
    for kernel, step in reversed(pairs) if reverse else pairs:
        state = kernel.move(bridge, state, beta, step=step, spread=tuning.spread[index]).state
    return state


def _spread(value: Float[Tensor, "K B *Z"], before: Float[Tensor, "1 B *Z"]) -> Float[Tensor, "1 B *Z"]:
    """Measure each coordinate's spread over chains; one that did not move keeps what it had."""
    found = value.std(0, keepdim=True)
    return torch.where(found > 0, found, before)


def _check_kernels(annealing: Annealing, bridge: Bridge) -> None:
    moved = frozenset[str]().union(*[kernel.sites(bridge) for kernel in annealing.kernels])
    if annealing.num_temperatures > 1 and moved != bridge.sites:
        raise EstimatorError(
            "annealed importance sampling",
            "no kernel moves some of the latents, which would stay as they were first drawn",
            expected=f"kernels for {sorted(bridge.sites)}",
            got=f"kernels for {sorted(moved)}",
            fix="kernels=(Independence(), HMC()), of which the first moves every kind of latent",
        )
