r"""Steps up a deterministic function that are taken only where it has really risen.

The direction is the gradient divided, coordinate by coordinate, by the root of its running mean square: every such
direction d has :math:`g^\top d > 0`. The step t is halved until

.. math:: f(x + t d) \ge f(x) + c\,t\,g^\top d

(L. Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives", 1966), and where no step
does, nothing moves. So f never falls, whatever its curvature and whatever rate was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SUFFICIENT = 1e-4
"""c of the rule above."""

MEMORY = 0.9
"""How much of the running mean square is kept from step to step."""


@dataclass(frozen=True)
class Climbed:
    """One step: the function's value before and after it, and how often the step was halved before it was accepted.

    ``moved`` is false where no step was accepted, and everything is as it was.
    """

    before: float
    after: float
    halvings: int
    moved: bool


class Ascent:
    """Climb a function of some parameters; the step that was accepted last, doubled, is tried first.

    >>> x = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    >>> ascent = Ascent({"x": x}, rate=100.0)
    >>> [ascent.climb(lambda: -(x**2).sum()).moved for _ in range(20)] and abs(x.item()) < 1e-2
    True
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, rate: float | int, max_halvings: int = 40) -> None:
        """Take parameters by name and the first step to try, in units of a coordinate."""
        moved = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.names, self.parameters = list(moved), list(moved.values())
        self.rate, self.max_halvings = float(rate), max_halvings
        self._square: list[Tensor] | None = None

    def climb(self, value: Callable[[], Tensor]) -> Climbed:
        """Take one step up ``value()``, a deterministic scalar of the parameters, or none."""
        start = value()
        before = float(start.detach())
        if not self.parameters or not start.requires_grad:
            return Climbed(before, before, 0, False)
        gradient = torch.autograd.grad(start, self.parameters, allow_unused=True, materialize_grads=True)
        direction, slope = self._direction(gradient)
        held = [parameter.detach().clone() for parameter in self.parameters]
        if not 0 < slope < math.inf:
            return Climbed(before, before, 0, False)
        for halvings in range(self.max_halvings + 1):
            rate = self.rate * 0.5**halvings
            self._place(held, direction, rate)
            with torch.no_grad():
                after = float(value())
            if self.accepts(before, after, rate * slope):
                self.rate = 2 * rate
                return Climbed(before, after, halvings, True)
        self._place(held, direction, 0.0)
        return Climbed(before, before, self.max_halvings + 1, False)

    @staticmethod
    def accepts(before: float, after: float, promised: float) -> bool:
        """Say whether a rise is enough of what the slope promised; NaN never is."""
        return after >= before + SUFFICIENT * promised and after >= before

    def state(self) -> dict[str, Tensor]:
        """Return what the next step hangs on."""
        squares = {} if self._square is None else dict(zip(self.names, self._square, strict=True))
        return {"rate": torch.tensor(self.rate, dtype=torch.float64), **{f"square.{n}": s for n, s in squares.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; the parameters are restored by whoever has them."""
        self.rate = float(state["rate"])
        known = all(f"square.{name}" in state for name in self.names)
        pairs = zip(self.names, self.parameters, strict=True)
        squares = [state[f"square.{name}"].to(each.device, copy=True) for name, each in pairs] if known else None
        self._square = squares

    def _direction(self, gradient: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        square = [g.square() for g in gradient]
        if self._square is not None:
            square = [MEMORY * old + (1 - MEMORY) * new for old, new in zip(self._square, square, strict=True)]
        self._square = square
        # a coordinate that never had a gradient stays where it is
        direction = [g / (s.sqrt() + 1e-12) for g, s in zip(gradient, square, strict=True)]
        return direction, float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))

    def _place(self, held: Sequence[Tensor], direction: Sequence[Tensor], rate: float) -> None:
        with torch.no_grad():
            for parameter, old, way in zip(self.parameters, held, direction, strict=True):
                parameter.copy_(old if rate == 0.0 else old + rate * way)
