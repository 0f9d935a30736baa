r"""A small grid world whose every value can be worked out with pencil and paper.

States are the cells in reading order, ``state = row * size + column``, row 0 at the top. Actions, by index::

    0 up    1 right    2 down    3 left    4 stay

The default grid (``F`` forbidden, ``T`` target), with the numbers of its states::

    .  .  .        0  1  2
    .  F  .        3  4  5
    .  .  T        6  7  8

A move that would leave the grid keeps the agent where it is and pays the boundary reward, nothing else. Any other
action pays what the cell it *arrives in* is worth, also when it arrives by staying: the forbidden cell -1 (it is
entered all the same), the target +1, every other cell 0. Nothing is terminal: at the target one may stay and be paid
for ever, hence :math:`V^*(\text{target}) = 1/(1-\gamma)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentpg.errors import OptionError
from latentpg.oracles.mdp import TabularMDP

ACTIONS = ("up", "right", "down", "left", "stay")
"""Names of the actions, in the order of their indices."""

_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))


def grid_world(
    *,
    size: int = 3,
    target: tuple[int, int] = (2, 2),
    forbidden: Sequence[tuple[int, int]] = ((1, 1),),
    start: tuple[int, int] | None = None,
    discount: float = 0.9,
    boundary_reward: float = -1.0,
    forbidden_reward: float = -1.0,
    target_reward: float = 1.0,
) -> TabularMDP:
    """Build the grid world of this module's docstring as a :class:`~latentpg.oracles.mdp.TabularMDP`.

    Cells are ``(row, column)``. Episodes start in ``start``, or in any cell with equal probability when it is ``None``.

    From the far corner, four moves round the forbidden cell reach the target: 0.9³ · 10 = 7.29.

    >>> values = grid_world().optimal().state_values.reshape(3, 3)
    >>> [[round(value, 4) for value in row] for row in values.tolist()]
    [[7.29, 8.1, 9.0], [8.1, 9.0, 10.0], [9.0, 10.0, 10.0]]
    """
    cells = [target, *forbidden] + ([] if start is None else [start])
    outside = [cell for cell in cells if not all(0 <= place < size for place in cell)]
    if size < 1 or outside:
        raise OptionError(
            "grid_world()", "a cell lies outside the grid", expected=f"(row, column) in 0..{size - 1}", got=str(outside)
        )
    if target in forbidden:
        raise OptionError("grid_world()", "the target is also forbidden", got=str(target))

    states, actions = size * size, len(ACTIONS)
    worth = torch.zeros(states, dtype=torch.float64)
    for row, column in forbidden:
        worth[row * size + column] = forbidden_reward
    worth[target[0] * size + target[1]] = target_reward

    transition = torch.zeros(states, actions, states, dtype=torch.float64)
    reward = torch.full((states, actions), boundary_reward, dtype=torch.float64)
    for state in range(states):
        for action, (down, right) in enumerate(_MOVES):
            row, column = state // size + down, state % size + right
            inside = 0 <= row < size and 0 <= column < size
            arrival = row * size + column if inside else state
            transition[state, action, arrival] = 1.0
            if inside:
                reward[state, action] = worth[arrival]

    initial = torch.full((states,), 1.0 / states, dtype=torch.float64)
    if start is not None:
        initial.zero_()[start[0] * size + start[1]] = 1.0
    return TabularMDP(transition=transition, reward=reward, initial=initial, discount=discount)
