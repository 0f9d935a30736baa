r"""Tabular Markov decision processes with every quantity of policy-gradient theory solved exactly.

With the table :math:`\pi` of shape ``[S, A]``, :math:`P_\pi(s,s') = \sum_a \pi(a|s) P(s'|s,a)` and
:math:`r_\pi(s) = \sum_a \pi(a|s) r(s,a)`, the Bellman equations are linear:

.. math::

    V = r_\pi + \gamma P_\pi V, \qquad d = \rho_0 + \gamma P_\pi^\top d, \qquad J = \rho_0^\top V = d^\top r_\pi .

They are solved by a direct method in float64, and autograd runs through the solve: with ``pi`` a differentiable
function of parameters, the gradient of :meth:`TabularMDP.objective` is the exact :math:`\nabla J`, to be compared with
:math:`\sum_s d(s)\sum_a\nabla\pi(a|s)\,Q(s,a)` (the policy-gradient theorem) and with every estimator.

A terminal state is entered but not acted in: its value, reward and visitation are 0 whatever the tables say about it.

Source: R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018, chapters 3, 4 and 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError

_ROUNDING = 1e-9  # how far a row of probabilities may be from summing to 1
_TIE = 1e-12  # a greedy action replaces the present one only when it is better by more than this, relative to |Q|


@dataclass(frozen=True)
class OptimalValues:
    """Solution of the Bellman optimality equation: values, and one deterministic policy that reaches them."""

    state_values: Float[Tensor, " S"]
    action_values: Float[Tensor, "S A"]
    policy: Int[Tensor, " S"]
    """The action taken in each state (of several equally good ones, any)."""


@dataclass(frozen=True, eq=False)
class TabularMDP:
    r"""A finite Markov decision process, and the exact answers to what one may ask of a policy in it.

    All tables are float64. ``reward`` is the expected reward of an action in a state. ``discount`` may be 1 only where
    every policy reaches a terminal state.

    One state whose second action pays 1, for ever: with :math:`\pi = (1/2, 1/2)` and :math:`\gamma = 1/2`,
    :math:`V = \frac12 / (1 - \frac12) = 1`.

    >>> stay = torch.ones(1, 2, 1, dtype=torch.float64)
    >>> pay = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    >>> mdp = TabularMDP(transition=stay, reward=pay, initial=torch.ones(1, dtype=torch.float64), discount=0.5)
    >>> pi = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    >>> mdp.objective(pi).item(), mdp.action_values(pi).tolist(), mdp.visitation(pi).tolist()
    (1.0, [[0.5, 1.5]], [2.0])
    """

    transition: Float[Tensor, "S A S"]
    reward: Float[Tensor, "S A"]
    initial: Float[Tensor, " S"]
    discount: float
    terminal: Bool[Tensor, " S"] | None = None

    def __post_init__(self) -> None:
        """Refuse tables that are no decision process."""
        _check_shapes(self)
        _check_distribution("`transition`", self.transition)
        _check_distribution("`initial`", self.initial)
        if not self.reward.isfinite().all():
            raise OptionError("TabularMDP()", "`reward`", expected="finite rewards", got="NaN or infinity")
        if not 0.0 <= self.discount <= 1.0:
            raise OptionError("TabularMDP()", "`discount`", expected="a number in [0, 1]", got=repr(self.discount))
        if self.discount == 1.0 and (endless := _endless(self)).any():
            raise OptionError(
                "TabularMDP()",
                "`discount` is 1, but some policy never reaches a terminal state",
                expected="a terminal state reached under every policy",
                got=f"states that can be kept for ever: {endless.nonzero().squeeze(-1).tolist()}",
                fix="a discount below 1, or finite_horizon(mdp, horizon=..., discount=1.0)",
            )

    @property
    def num_states(self) -> int:
        """Number of states S."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """Number of actions A."""
        return self.reward.shape[1]

    @property
    def live(self) -> Bool[Tensor, " S"]:
        """States that are acted in: all but the terminal ones."""
        if self.terminal is None:
            return torch.ones_like(self.initial, dtype=torch.bool)
        return ~self.terminal

    def state_values(self, pi: Float[Tensor, "S A"]) -> Float[Tensor, " S"]:
        r"""Return :math:`V^\pi = (I - \gamma P_\pi)^{-1} r_\pi`."""
        transition, reward = self._live_tables()
        table = self._table(pi)
        return torch.linalg.solve(self._resolvent(table, transition), (table * reward).sum(-1))

    def action_values(self, pi: Float[Tensor, "S A"]) -> Float[Tensor, "S A"]:
        r"""Return :math:`Q^\pi(s,a) = r(s,a) + \gamma \sum_{s'} P(s'|s,a) V^\pi(s')`."""
        return self._lookahead(self.state_values(pi))

    def advantages(self, pi: Float[Tensor, "S A"]) -> Float[Tensor, "S A"]:
        r"""Return :math:`A^\pi(s,a) = Q^\pi(s,a) - V^\pi(s)`; its mean under :math:`\pi` is 0 in every state."""
        values = self.state_values(pi)
        return self._lookahead(values) - values[:, None]

    def visitation(self, pi: Float[Tensor, "S A"]) -> Float[Tensor, " S"]:
        r"""Return the discounted number of visits :math:`d^\pi(s) = \sum_t \gamma^t P(s_t = s)`.

        Not normalised: without terminal states it sums to :math:`1/(1-\gamma)`.
        """
        transition, _ = self._live_tables()
        start = self.initial * self.live
        return torch.linalg.solve(self._resolvent(self._table(pi), transition).T, start)

    def objective(self, pi: Float[Tensor, "S A"]) -> Float[Tensor, ""]:
        r"""Return :math:`J(\pi) = E[\sum_t \gamma^t r_t] = \sum_s \rho_0(s) V^\pi(s)`, differentiable in ``pi``.

        The rows of ``pi`` need not sum to 1 for the equations to be solved, so a finite difference may step off the
        simplex.
        """
        return self.initial @ self.state_values(pi)

    def optimal(self) -> OptimalValues:
        r"""Solve :math:`V^*(s) = \max_a [r(s,a) + \gamma \sum_{s'} P(s'|s,a) V^*(s')]` by policy iteration.

        Each round solves the present policy exactly and takes every action that is strictly better; no policy comes
        twice, so it ends. Source: R. A. Howard, "Dynamic programming and Markov processes", 1960.
        """
        chosen = self.reward.argmax(-1)
        while True:
            pi = torch.nn.functional.one_hot(chosen, self.num_actions).double()
            q = self.action_values(pi)
            best, greedy = q.max(-1)
            present = q.gather(-1, chosen[:, None]).squeeze(-1)
            better = best > present + _TIE * (1.0 + q.abs().max())
            if not better.any():
                return OptimalValues(state_values=present, action_values=q, policy=chosen)
            chosen = torch.where(better, greedy, chosen)

    def _live_tables(self) -> tuple[Tensor, Tensor]:
        live = self.live.to(self.reward.dtype)
        return self.transition * live[:, None, None] * live, self.reward * live[:, None]

    def _lookahead(self, values: Tensor) -> Tensor:
        transition, reward = self._live_tables()
        return reward + self.discount * transition @ values

    def _resolvent(self, table: Tensor, transition: Tensor) -> Tensor:
        under_policy = torch.einsum("sa,sap->sp", table, transition)
        return torch.eye(self.num_states, dtype=table.dtype) - self.discount * under_policy

    def _table(self, pi: Tensor) -> Tensor:
        if pi.shape != self.reward.shape:
            raise ShapeError(
                "TabularMDP",
                "`pi`",
                expected=f"[S={self.num_states}, A={self.num_actions}]",
                got=str(list(pi.shape)),
                likely="a transposed table, or one state's probabilities",
            )
        return pi.double()


def finite_horizon(mdp: TabularMDP, *, horizon: int, discount: float | None = None) -> TabularMDP:
    r"""Return the process that ends after ``horizon`` actions, with time made part of the state.

    State ``t * S + s`` is state ``s`` at time ``t``; one more state, the last, is the end. A policy ``[S, A]`` that
    does not look at the clock becomes the table of ``pi.repeat(horizon, 1)`` with one more row, any, for the end. The
    discount is the given process's unless another is named; since every policy ends, it may be 1.

    >>> stay = torch.ones(1, 2, 1, dtype=torch.float64)
    >>> pay = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    >>> endless = TabularMDP(transition=stay, reward=pay, initial=torch.ones(1, dtype=torch.float64), discount=0.5)
    >>> finite_horizon(endless, horizon=2).optimal().state_values.tolist()
    [1.5, 1.0, 0.0]
    """
    if horizon < 1:
        raise OptionError("finite_horizon()", "`horizon`", expected="at least 1", got=repr(horizon))
    states, actions, end = mdp.num_states, mdp.num_actions, horizon * mdp.num_states
    transition = torch.zeros(end + 1, actions, end + 1, dtype=torch.float64)
    for t in range(horizon):
        rows = slice(t * states, (t + 1) * states)
        if t + 1 < horizon:
            transition[rows, :, (t + 1) * states : (t + 2) * states] = mdp.transition
        else:
            transition[rows, :, end] = 1.0
    transition[end, :, end] = 1.0
    initial = torch.zeros(end + 1, dtype=torch.float64)
    initial[:states] = mdp.initial
    last = torch.ones(1, dtype=torch.bool)
    return TabularMDP(
        transition=transition,
        reward=torch.cat([mdp.reward.repeat(horizon, 1), torch.zeros(1, actions, dtype=torch.float64)]),
        initial=initial,
        discount=mdp.discount if discount is None else discount,
        terminal=torch.cat([(~mdp.live).repeat(horizon), last]),
    )


def _endless(mdp: TabularMDP) -> Tensor:
    """Find the largest set of live states that some policy never leaves."""
    kept = mdp.live
    while True:
        stays = mdp.transition[:, :, kept].sum(-1) > 1.0 - _ROUNDING
        smaller = kept & stays.any(-1)
        if bool((smaller == kept).all()):
            return kept
        kept = smaller


def _check_shapes(mdp: TabularMDP) -> None:
    if mdp.reward.ndim != 2 or 0 in mdp.reward.shape:
        raise ShapeError(
            "TabularMDP()", "`reward`", expected="[S, A], both at least 1", got=str(list(mdp.reward.shape))
        )
    states, actions = mdp.reward.shape
    expected = {"transition": (states, actions, states), "initial": (states,), "terminal": (states,)}
    for name, shape in expected.items():
        table = getattr(mdp, name)
        if table is not None and table.shape != shape:
            raise ShapeError(
                "TabularMDP()", f"`{name}`", expected=f"{list(shape)} (S={states}, A={actions} from `reward`)",
                got=str(list(table.shape)),
            )  # fmt: skip
    for name in ("transition", "reward", "initial"):
        if (dtype := getattr(mdp, name).dtype) != torch.float64:
            raise OptionError(
                "TabularMDP()", f"`{name}`", expected="torch.float64, for answers that are exact", got=str(dtype),
                fix=f"{name}.double()",
            )  # fmt: skip
    if mdp.terminal is not None and mdp.terminal.dtype != torch.bool:
        raise OptionError("TabularMDP()", "`terminal`", expected="a mask, torch.bool", got=str(mdp.terminal.dtype))


def _check_distribution(name: str, table: Tensor) -> None:
    total = table.sum(-1)
    if not (table >= 0.0).all() or not ((total - 1.0).abs() <= _ROUNDING).all():
        raise OptionError(
            "TabularMDP()",
            name,
            expected="non-negative probabilities whose last dimension sums to 1",
            got=f"smallest {table.min().item():.3g}, sums from {total.min().item():.6g} to {total.max().item():.6g}",
        )
