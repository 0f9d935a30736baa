"""One optimiser over one set of parameters, fed by ``torch.autograd.grad``, that refuses what is not finite.

Theta and phi, psi, and a critic's weights each have one of their own: gradients are taken in one set at a time, so no
objective leaks into another's parameters, and none is left behind in ``.grad``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners.faults import LearningFault
from latentpg.learners.parallel import ALONE, Group, mean_of

ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter: how many steps, and running means of its gradient and of the square of that."""

BETAS = (0.9, 0.999)
"""How slowly Adam's running means forget."""


class Descent:
    """Adam on a set of parameters, with the gradient's norm clipped.

    Adam: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015. ``max_grad_norm`` of infinity clips
    nothing. An empty set of parameters has nothing to descend, and every step of it is zero. In a ``group`` all workers
    step together, along the mean of their gradients.

    >>> weight = nn.Parameter(torch.tensor([3.0]))
    >>> descent = Descent({"weight": weight}, learning_rate=0.5)
    >>> round(descent.step((weight**2).sum()), 4), round(weight.item(), 4)  # Adam's first step is the whole rate
    (6.0, 2.5)
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float | int,
        max_grad_norm: float | int = float("inf"),
        epsilon: float | int = 1e-5,
        group: Group = ALONE,
    ) -> None:
        """Take parameters by name; names serve the messages. Those that need no gradient stay as they are."""
        moved = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.names = list(moved)
        self.parameters: list[Tensor] = list(moved.values())
        self.learning_rate, self.epsilon = float(learning_rate), float(epsilon)
        self.max_grad_norm = float(max_grad_norm)
        self.group = group
        self._begin()

    def _begin(self) -> None:
        """Remember nothing."""
        device = self.parameters[0].device if self.parameters else None
        self._step = torch.zeros((), dtype=torch.float32, device=device)  # one for all: they move together
        self._means = [torch.zeros_like(each, memory_format=torch.preserve_format) for each in self.parameters]
        self._squares = [torch.zeros_like(each, memory_format=torch.preserve_format) for each in self.parameters]

    def set_rate(self, learning_rate: float | int) -> None:
        """Change the learning rate from the next step on."""
        if not 0 <= learning_rate < math.inf:
            raise OptionError(
                "Descent.set_rate()", "`learning_rate`", expected="a number >= 0", got=repr(learning_rate)
            )
        self.learning_rate = float(learning_rate)

    def step(self, loss: Float[Tensor, ""], *, rows: float | int = 1, retain_graph: bool = False) -> float:
        """Go one step down and return the gradient's norm before clipping.

        A loss or gradient that is not finite is a :class:`LearningFault` that names the first such tensor; parameters
        and the optimiser are then as they were. The loss is a mean over so many ``rows``, which is what a worker's
        counts for in its group.
        """
        if not self.parameters:
            return 0.0
        own = self.gradients(loss, retain_graph=retain_graph)
        whole, *gradients = mean_of(self.group, [loss, *own], rows)
        _check_loss(whole)
        length = self.check(gradients)
        self.descend(_each_its_own(gradients), length, in_place=True)
        return length

    def gradients(self, loss: Float[Tensor, ""], *, retain_graph: bool = False) -> tuple[Tensor, ...]:
        """Return the loss's gradient, a tensor for each parameter."""
        if not self.parameters:
            return ()
        return torch.autograd.grad(
            loss, self.parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
        )

    def move(self, gradients: Sequence[Tensor]) -> float:
        """Go one step along gradients that were made elsewhere, refused and clipped as in :meth:`step`.

        In a group every worker must have the same.
        """
        if not self.parameters:
            return 0.0
        length = self.check(gradients)
        self.descend(gradients, length)
        return length

    def check(self, gradients: Sequence[Tensor]) -> float:
        """Return the gradients' norm, or refuse them."""
        length = math.hypot(*torch.stack(torch._foreach_norm(list(gradients))).tolist()) if self.parameters else 0.0
        self.check_length(length, gradients)
        return length

    def check_length(self, length: float, gradients: Sequence[Tensor]) -> None:
        """Refuse gradients of a norm that is not finite."""
        if not length < math.inf:
            raise _fault([(f"the gradient of {n}", g) for n, g in zip(self.names, gradients, strict=True)])

    def descend(self, gradients: Sequence[Tensor], length: float, *, in_place: bool = False) -> None:
        """Go one step along gradients of this norm, which were found finite.

        ``in_place`` lets them be clipped where they are: nobody else may read them, and no two be one tensor.
        """
        scale = None
        if length > self.max_grad_norm and in_place:
            scale = self._step.new_tensor((length + 1e-6) / self.max_grad_norm)
        elif length > self.max_grad_norm:
            gradients = torch._foreach_mul(list(gradients), self.max_grad_norm / (length + 1e-6))
        laid_out = [_laid_out_like(each, gradient) for each, gradient in zip(self.parameters, gradients, strict=True)]
        with torch.no_grad():
            self._step += 1
            # the kernel alone: torch.optim's way to it costs more than it, and that for every minibatch
            torch._fused_adam_(
                self.parameters,
                laid_out,
                self._means,
                self._squares,
                [],
                [self._step] * len(laid_out),
                lr=self.learning_rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=0.0,
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,  # divides by it on the way, which is to clip without a pass of its own
            )

    def state(self) -> dict[str, Tensor]:
        """Return what Adam remembers, by the parameters' names; nothing before the first step."""
        if not bool(self._step):
            return {}
        kept = zip(self.names, self._means, self._squares, strict=True)
        return {
            f"{key}.{name}": value.detach().clone()
            for name, *values in kept
            for key, value in zip(ADAM, (self._step, *values), strict=True)
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; the parameters themselves are the policy's to restore."""
        self._begin()
        for name, *values in zip(self.names, self._means, self._squares, strict=True):
            for key, mine in zip(ADAM, (self._step, *values), strict=True):
                if f"{key}.{name}" in state:
                    mine.copy_(state[f"{key}.{name}"])


Descending: TypeAlias = tuple[Descent, Float[Tensor, ""]]
"""A set of parameters, and the loss that it goes down."""


def step_together(first: Descending, second: Descending, *, rows: float | int = 1) -> tuple[float, float]:
    """Go one step down two losses by one backward pass, and return both norms; either both are moved or none.

    Neither loss may hang on the other's parameters: each would be moved by both. Both are means over ``rows``.

    >>> weights = [nn.Parameter(torch.tensor(3.0)) for _ in range(2)]
    >>> policy, critic = (Descent({"weight": weight}, learning_rate=0.5) for weight in weights)
    >>> step_together((policy, weights[0] ** 2), (critic, 2 * weights[1]))
    (6.0, 2.0)
    """
    (one, loss), (other, another) = first, second
    if not one.parameters or not other.parameters:
        return one.step(loss, rows=rows), other.step(another, rows=rows)
    own = torch.autograd.grad(
        loss + another, [*one.parameters, *other.parameters], allow_unused=True, materialize_grads=True
    )
    loss, another, *gradients = mean_of(one.group, [loss, another, *own], rows)
    _check_loss(loss)
    _check_loss(another)
    size, gradients = len(one.parameters), _each_its_own(gradients)
    mine, others = gradients[:size], gradients[size:]
    norms = torch.stack(torch._foreach_norm(gradients)).tolist()
    lengths = math.hypot(*norms[:size]), math.hypot(*norms[size:])
    one.check_length(lengths[0], mine)
    other.check_length(lengths[1], others)
    one.descend(mine, lengths[0], in_place=True)
    other.descend(others, lengths[1], in_place=True)
    return lengths


def _each_its_own(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Let no two gradients be one tensor, which autograd may give to two parameters that are added."""
    if len({each.data_ptr() for each in gradients}) == len(gradients):
        return list(gradients)
    return [each.clone() for each in gradients]


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Copy a gradient whose memory lies otherwise than its parameter's: the fused kernel reads both as they lie."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def named_among(policy: nn.Module, chosen: Sequence[nn.Parameter]) -> Mapping[str, nn.Parameter]:
    """Return the chosen parameters by the names that the policy has for them."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    return {names.get(id(parameter), f"parameter {place}"): parameter for place, parameter in enumerate(chosen)}


def _check_loss(loss: Float[Tensor, ""]) -> None:
    if not math.isfinite(float(loss.detach())):  # its gradient may be finite all the same
        raise _fault([("the loss", loss.detach())])


def check_finite(what: str, values: Tensor) -> None:
    """Refuse numbers that are NaN or infinite by a :class:`LearningFault`, before anything is learnt from them."""
    if math.isfinite(values.detach().sum().item()):  # one kernel; a sum too large for its type is looked into below
        return
    if not bool(values.isfinite().all()):
        raise _fault([(what, values.detach())])


def _fault(named: Sequence[tuple[str, Tensor]]) -> LearningFault:
    found = ((what, value) for what, value in named if not bool(value.isfinite().all()))
    what, value = next(found, ("the gradient's norm", torch.tensor(float("inf"))))
    bad = value[~value.isfinite()]
    return LearningFault(
        "learner",
        f"{what} is not finite",
        expected="finite numbers; parameters and optimiser are as they were before this step",
        got=f"{float(bad[0]) if len(bad) else float('inf')} in {max(len(bad), 1)} of {value.numel()} entries",
        likely="a diverging policy, or rewards or observations of an extreme scale",
        fix="a smaller learning rate, normalised observations and rewards, or a bounded log standard deviation",
    )
