r"""All trajectories of a finite-horizon decision process, so that any expectation over them is a finite sum.

A trajectory is a column: states, actions, rewards and mask are ``[T, N]``, one of the ``N`` columns for each sequence
of states and actions that the dynamics allow. Columns do not depend on a policy; a policy only gives them
probabilities,

.. math:: \log p(\tau) = \log\rho_0(s_0) + \sum_t \log\pi(a_t|s_t) + \sum_t \log P(s_{t+1}|s_t,a_t),

so that the same enumeration serves an old and a new policy. An episode ends after ``T`` actions or when it enters a
terminal state; steps behind that end are masked, with reward 0. Rewards are the expected ones, ``reward[s_t, a_t]``.

**Policies whose latent spans several steps.** With ``span`` steps to one z, z is drawn from the prior at the state of
steps 0, span, 2·span, …, and every action of its span comes from the decoder given that z. Such a policy is not Markov
in the state: the *row* is the span, its likelihood :math:`\sum_z p(z|s_{start})\prod_{t} p(a_t|s_t,z)`
(:meth:`Trajectories.span_log_prob`).

**How to test an estimator with it.** What code computes on average, and what it should equal::

    sum_n  p(tau_n).detach() * surrogate(tau_n)      its gradient is the expected gradient      expected_surrogate()
    sum_n  p(tau_n)          * value(tau_n)          its gradient is the gradient of the mean   expectation()

Without the ``detach`` the first is the second, and the test tests nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.oracles.mdp import TabularMDP


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Every trajectory as a column, with what the policy has no say in."""

    states: Int[Tensor, "T N"]
    actions: Int[Tensor, "T N"]
    rewards: Float[Tensor, "T N"]
    mask: Bool[Tensor, "T N"]
    """True where the step is acted; False behind the end of the episode."""
    log_dynamics: Float[Tensor, " N"]
    r"""The initial state's and the transitions' part of the log-probability."""
    latents: Int[Tensor, "T N"] | None = None
    """The z of each step's span, where trajectories were enumerated with latents."""
    span: int = 1
    """Number of steps that one z governs."""

    @property
    def done(self) -> Bool[Tensor, "T N"]:
        """True at the last acted step of each trajectory, and behind it."""
        continues = torch.zeros_like(self.mask)
        continues[:-1] = self.mask[1:]
        return ~continues

    def action_log_prob(self, log_pi: Float[Tensor, "S A"]) -> Float[Tensor, "T N"]:
        r"""Return :math:`\log\pi(a_t|s_t)` of a Markov policy, 0 where masked."""
        return log_pi[self.states, self.actions].masked_fill(~self.mask, 0.0)

    def log_prob(self, log_pi: Float[Tensor, "S A"]) -> Float[Tensor, " N"]:
        r"""Return :math:`\log p(\tau)` under a Markov policy."""
        return self.log_dynamics + self.action_log_prob(log_pi).sum(0)

    def joint_log_prob(
        self, log_prior: Float[Tensor, "S C"], log_decoder: Float[Tensor, "S C A"]
    ) -> Float[Tensor, "T N"]:
        r"""Return each step's part of :math:`\log p(z, a_{0:T}|s)`, with the enumerated latents.

        That is :math:`\log p_\theta(a_t|s_t,z)`, with :math:`\log p_\phi(z|s_t)` added on the first step of each span.
        """
        if self.latents is None:
            raise OptionError(
                "Trajectories.joint_log_prob()",
                "these trajectories carry no latents",
                fix="enumerate_trajectories(..., num_latents=C)",
            )
        starts = torch.arange(len(self.states)) % self.span == 0
        prior = log_prior[self.states, self.latents].masked_fill(~starts[:, None], 0.0)
        joint = prior + log_decoder[self.states, self.latents, self.actions]
        return joint.masked_fill(~self.mask, 0.0)

    def predictive_log_prob(
        self, log_prior: Float[Tensor, "S C"], log_decoder: Float[Tensor, "S C A"], *, span: int
    ) -> Float[Tensor, "T N"]:
        r"""Return :math:`\log p(a_t | s_{start:t}, a_{start:t-1})` with z summed out, 0 where masked.

        Differences of cumulative logsumexp: :math:`\log\sum_z p(z, a_{start:t}) - \log\sum_z p(z, a_{start:t-1})`.
        Credit per step inside a span is right with these (they are a policy that remembers its span), and with no
        marginal :math:`\pi(a_t|s_t)`.
        """
        if span < 1:
            raise OptionError("Trajectories.predictive_log_prob()", "`span`", expected="at least 1", got=repr(span))
        decoder = log_decoder[self.states, :, self.actions].masked_fill(~self.mask[..., None], 0.0)
        steps = []
        for start in range(0, len(decoder), span):
            prior = log_prior[self.states[start]].masked_fill(~self.mask[start, :, None], -math.log(log_prior.shape[1]))
            joint = torch.cat([prior[None], decoder[start : start + span]]).cumsum(0)
            steps.append(joint.logsumexp(-1).diff(dim=0))
        return torch.cat(steps)

    def span_log_prob(
        self, log_prior: Float[Tensor, "S C"], log_decoder: Float[Tensor, "S C A"], *, span: int
    ) -> Float[Tensor, "M N"]:
        r"""Return :math:`\log\sum_z p(z|s_{start})\prod_{t\in span}p(a_t|s_t,z)`, one entry a row, M = ⌈T/span⌉ rows.

        Summed over the rows and added to ``log_dynamics`` it is the log-probability of the trajectory.
        """
        steps = self.predictive_log_prob(log_prior, log_decoder, span=span)
        return torch.stack([row.sum(0) for row in steps.split(span)])


def enumerate_trajectories(
    mdp: TabularMDP, *, horizon: int, num_latents: int | None = None, span: int = 1, max_columns: int = 1_000_000
) -> Trajectories:
    r"""List every trajectory of ``horizon`` actions that the dynamics allow.

    With ``num_latents`` every sequence of latents is listed too, one latent for each ``span`` steps. The number of
    columns grows as :math:`(SA)^T`, with latents times :math:`C^{\lceil T/span\rceil}`; beyond ``max_columns`` an
    :class:`~latentpg.errors.OptionError` is raised. The state after the last action is not part of a trajectory.

    >>> from latentpg.oracles.grid_world import grid_world
    >>> corner = enumerate_trajectories(grid_world(start=(0, 0)), horizon=2)
    >>> corner.states.shape  # 5 actions, then 5 actions; the moves are deterministic
    torch.Size([2, 25])
    >>> uniform = torch.full((9, 5), 0.2, dtype=torch.float64).log()
    >>> round(expectation(corner.log_prob(uniform), corner.rewards.sum(0)).item(), 6)  # two walls of five ways, twice
    -0.8
    """
    if horizon < 1 or span < 1 or (num_latents is not None and num_latents < 1):
        raise OptionError(
            "enumerate_trajectories()", "`horizon`, `span` and `num_latents`", expected="at least 1",
            got=f"horizon={horizon}, span={span}, num_latents={num_latents}",
        )  # fmt: skip
    columns = _start(mdp)
    for t in range(horizon):
        if num_latents is not None:
            columns = _draw_latent(mdp, columns, num_latents, fresh=t % span == 0)
        columns = _act(mdp, columns)
        if t + 1 < horizon:
            columns = _move(mdp, columns)
        if columns.log_dynamics.shape[0] > max_columns:
            raise OptionError(
                "enumerate_trajectories()", f"more than {max_columns} trajectories at step {t}",
                fix="fewer states, actions or steps, or a larger max_columns",
            )  # fmt: skip
    states, actions = torch.stack(columns.states), torch.stack(columns.actions)
    mask = mdp.live[states]
    return Trajectories(
        states=states,
        actions=actions,
        rewards=mdp.reward[states, actions].masked_fill(~mask, 0.0),
        mask=mask,
        log_dynamics=columns.log_dynamics,
        latents=torch.stack(columns.latents) if num_latents is not None else None,
        span=span,
    )


def expectation(log_prob: Float[Tensor, " N"], value: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    r"""Return :math:`\sum_n p(\tau_n) f(\tau_n)`; its gradient is the gradient of the mean, through p too.

    >>> p = torch.tensor([0.25, 0.75], requires_grad=True)
    >>> mean = expectation(p.log(), torch.tensor([4.0, 0.0]))
    >>> mean.item(), torch.autograd.grad(mean, p)[0].tolist()
    (1.0, [4.0, 0.0])
    """
    _check_columns("expectation()", log_prob, value)
    return (log_prob.exp() * value).sum()


def expected_surrogate(log_prob: Float[Tensor, " N"], surrogate: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    r"""Return :math:`\sum_n \mathrm{sg}[p(\tau_n)]\,L(\tau_n)`; its gradient is what sampling code computes on average.

    >>> p = torch.tensor([0.25, 0.75], requires_grad=True)
    >>> torch.autograd.grad(expected_surrogate(p.log(), 8.0 * p.log()), p)[0].tolist()
    [8.0, 8.0]
    """
    _check_columns("expected_surrogate()", log_prob, surrogate)
    return (log_prob.detach().exp() * surrogate).sum()


@dataclass(frozen=True, eq=False)
class Groups:
    """Every multiset of G trajectories from one initial state, as the indices of their columns."""

    index: Int[Tensor, "G M"]
    log_multiplicity: Float[Tensor, " M"]
    """Log of the number of orders in which the multiset can be drawn."""
    log_initial: Float[Tensor, " M"]
    """Log-probability of the initial state that the members share."""

    def log_prob(self, log_prob: Float[Tensor, " N"]) -> Float[Tensor, " M"]:
        r"""Return the log-probability of each group from that of each trajectory.

        The initial state is drawn once, its G members independently given it.
        """
        given_initial = log_prob[self.index] - self.log_initial
        return given_initial.sum(0) + self.log_multiplicity + self.log_initial


def enumerate_groups(trajectories: Trajectories, mdp: TabularMDP, *, group_size: int) -> Groups:
    r"""List the groups of ``group_size`` episodes from the same initial state that GRPO and RLOO compare.

    Valid for whatever treats the members of a group alike: multisets stand for all orders of the same members, which
    makes :math:`\binom{N+G-1}{G}` groups of an initial state with N trajectories instead of :math:`N^G`.
    """
    if group_size < 2:
        raise OptionError(
            "enumerate_groups()", "`group_size`", expected="at least 2: one episode is no group", got=repr(group_size)
        )
    index, initial = [], []
    for state in mdp.initial.nonzero().squeeze(-1):
        columns = (trajectories.states[0] == state).nonzero().squeeze(-1)
        index.append(torch.combinations(columns, group_size, with_replacement=True).T)
        initial.append(mdp.initial[state].log().expand(index[-1].shape[1]))
    groups = torch.cat(index, dim=1)
    # A multiset with counts n_1, n_2, ... has G! / (n_1! n_2! ...) orders. Members come sorted, so the i-th of a run of
    # equal ones contributes the factor i to the denominator.
    run = torch.ones(groups.shape, dtype=torch.float64)
    for member in range(1, group_size):
        run[member] = torch.where(groups[member] == groups[member - 1], run[member - 1] + 1.0, 1.0)
    return Groups(
        index=groups,
        log_multiplicity=math.lgamma(group_size + 1) - run.log().sum(0),
        log_initial=torch.cat(initial),
    )


@dataclass(frozen=True, eq=False)
class _Columns:
    """Unfinished trajectories, step by step."""

    states: list[Tensor]
    actions: list[Tensor]
    latents: list[Tensor]
    log_dynamics: Tensor

    def branch(self, allowed: Tensor) -> tuple[_Columns, Tensor]:
        """Repeat each column once for every choice that is ``allowed`` [N, choices]; return the choices too."""
        column, choice = allowed.nonzero(as_tuple=True)
        pick = [[past[column] for past in pasts] for pasts in (self.states, self.actions, self.latents)]
        return _Columns(pick[0], pick[1], pick[2], self.log_dynamics[column]), choice


def _start(mdp: TabularMDP) -> _Columns:
    states = mdp.initial.nonzero().squeeze(-1)
    return _Columns([states], [], [], mdp.initial[states].log())


def _draw_latent(mdp: TabularMDP, columns: _Columns, num_latents: int, *, fresh: bool) -> _Columns:
    if not fresh:
        return _append(columns, latent=columns.latents[-1])
    branched, latent = columns.branch(_choices(mdp, columns, num_latents))
    return _append(branched, latent=latent)


def _act(mdp: TabularMDP, columns: _Columns) -> _Columns:
    branched, action = columns.branch(_choices(mdp, columns, mdp.num_actions))
    return _append(branched, action=action)


def _move(mdp: TabularMDP, columns: _Columns) -> _Columns:
    state, action = columns.states[-1], columns.actions[-1]
    remain = torch.eye(mdp.num_states, dtype=torch.float64)[state]  # finished episodes stay where they ended
    probability = torch.where(mdp.live[state][:, None], mdp.transition[state, action], remain)
    branched, arrival = columns.branch(probability > 0.0)
    return _append(branched, state=arrival, log_dynamics=probability[probability > 0.0].log())


def _choices(mdp: TabularMDP, columns: _Columns, number: int) -> Tensor:
    """Allow every choice while the episode lives, and only choice 0, a filler, behind its end."""
    filler = torch.arange(number) == 0
    return mdp.live[columns.states[-1]][:, None] | filler


def _append(
    columns: _Columns,
    *,
    state: Tensor | None = None,
    action: Tensor | None = None,
    latent: Tensor | None = None,
    log_dynamics: Tensor | None = None,
) -> _Columns:
    return _Columns(
        states=columns.states + ([] if state is None else [state]),
        actions=columns.actions + ([] if action is None else [action]),
        latents=columns.latents + ([] if latent is None else [latent]),
        log_dynamics=columns.log_dynamics if log_dynamics is None else columns.log_dynamics + log_dynamics,
    )


def _check_columns(where: str, log_prob: Tensor, value: Tensor) -> None:
    if log_prob.ndim != 1 or value.shape != log_prob.shape:
        raise ShapeError(
            where,
            "`value`, one number a trajectory",
            expected=f"[N={log_prob.numel()}]",
            got=str(list(value.shape)),
            likely="steps not summed",
            fix="value.sum(0)",
        )
