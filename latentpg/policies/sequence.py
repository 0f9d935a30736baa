"""Guides that read a whole sequence: q(z | s_1, a_1, ..., s_T, a_T), whatever stands outside the mask.

Each is called like :class:`~latentpg.policies.common.GuideTrunk`, with observations ``[B, T, S]`` in a
:class:`~latentpg.programs.Span`, their features and the actions, and returns the parameters of q, one row each. Plain
step rows ``[B, S]`` are sequences of one step.

* :class:`AttentionGuide` reads every step by itself and pools by several learned queries, each a softmax over the
  steps in the mask. It does not see the order of steps, unless the observation tells it, and runs under ``torch.func``.
* :class:`GRUGuide` reads the steps forth and back, in the order in which they stand.

Both see what padding holds as little as the likelihood does: a step outside the mask changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from latentpg.errors import OptionError, ShapeError
from latentpg.policies.common import Activation, check_sizes, fill_padding
from latentpg.policies.heads import ActionHead
from latentpg.policies.networks import MLP, ConditionedMLP
from latentpg.programs.rows import Observations, Span

Reader = Literal["attention", "gru"]
"""The name of a guide: :class:`AttentionGuide` or :class:`GRUGuide`."""


class AttentionGuide(nn.Module):
    r"""Pool what was read of each step by Q queries, :math:`\sum_t \mathrm{softmax}_t(w_q^\top h_t)\, h_t`; read out.

    Attention pooling as in M. Ilse, J. Tomczak and M. Welling, "Attention-based deep multiple instance learning", 2018.
    """

    def __init__(
        self,
        in_features: int,
        head: ActionHead,
        hidden: Sequence[int],
        out_features: int,
        activation: Activation,
        *,
        num_queries: int = 4,
    ) -> None:
        """Take the decoder's head for its embedding of actions; its parameters stay the decoder's."""
        super().__init__()
        check_sizes("AttentionGuide()", num_queries=num_queries)
        self._embed, self._head_shape = head.embed, head.event_shape
        width = hidden[-1]
        self.steps = ConditionedMLP(in_features, [head.embedding_size], hidden, width, activation)
        self.queries = nn.Linear(width, num_queries, bias=False)  # a bias would be the same for all steps
        self.readout = MLP(num_queries * width, [width], out_features, activation)
        self.activation = activation()

    def forward(self, obs: Observations, features: Tensor, action: Tensor) -> Float[Tensor, "B P"]:
        """Return the guide's parameters, one row each."""
        mask, features, action = as_sequence(obs, features, action, self._head_shape)
        hidden = self.activation(self.steps(features, [self._embed(action)]))
        scores = self.queries(hidden).masked_fill(~mask.unsqueeze(-1), -torch.inf)
        return self.readout(torch.einsum("btq,bth->bqh", scores.softmax(1), hidden).flatten(1))


class GRUGuide(nn.Module):
    """Read a sequence forth and back by gated recurrent units, and read out both final states.

    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    2014. Steps outside the mask are taken out, wherever they stand.
    """

    def __init__(
        self,
        in_features: int,
        head: ActionHead,
        hidden: Sequence[int],
        out_features: int,
        activation: Activation,
    ) -> None:
        """Take the decoder's head for its embedding of actions; its parameters stay the decoder's."""
        super().__init__()
        self._embed, self._head_shape = head.embed, head.event_shape
        width = hidden[-1]
        self.cells = nn.GRU(in_features + head.embedding_size, width, batch_first=True, bidirectional=True)
        self.readout = MLP(2 * width, [width], out_features, activation)

    def forward(self, obs: Observations, features: Tensor, action: Tensor) -> Float[Tensor, "B P"]:
        """Return the guide's parameters, one row each."""
        mask, features, action = as_sequence(obs, features, action, self._head_shape)
        steps = torch.cat([features, self._embed(action).to(features.dtype)], -1)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # the steps in the mask first, in their order
        steps = steps.gather(1, order.unsqueeze(-1).expand_as(steps))
        packed = pack_padded_sequence(steps, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        last = self.cells(packed)[1]
        return self.readout(torch.cat([last[0], last[1]], -1))


def make_reader(
    name: str,
    in_features: int,
    head: ActionHead,
    hidden: Sequence[int],
    out_features: int,
    activation: Activation,
) -> AttentionGuide | GRUGuide:
    """Build the guide of a name."""
    if name not in get_args(Reader):
        raise OptionError(
            "policy", "`reader`", expected=" or ".join(f'"{each}"' for each in get_args(Reader)), got=repr(name)
        )
    kind = AttentionGuide if name == "attention" else GRUGuide
    return kind(in_features, head, hidden, out_features, activation)


def as_sequence(
    obs: Observations, features: Tensor, action: Tensor, event_shape: tuple[int, ...]
) -> tuple[Bool[Tensor, "B T"], Float[Tensor, "B T F"], Tensor]:
    """Return mask, features and actions of every step, padding filled; the features are not the guide's to move."""
    expected = (*features.shape[:-1], *event_shape)
    if tuple(action.shape) != expected:
        raise ShapeError(
            "guide()",
            "`action`",
            expected=f"one action a step of `obs`: {list(expected)}",
            got=str(list(action.shape)),
            fix="pass actions in policy coordinates, padded like `obs`",
        )
    if isinstance(obs, Span):
        return obs.mask, features.detach(), fill_padding(obs, action)
    mask = torch.ones(features.shape[0], 1, dtype=torch.bool, device=features.device)
    return mask, features.detach().unsqueeze(1), action.unsqueeze(1)
