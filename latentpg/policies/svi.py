"""Train a policy in Pyro's own SVI.

The programs here are plate-free and keep their parameters in plain modules. Pyro's losses want the opposite: a plate
that marks rows as independent, and ``pyro.module`` statements, without which they silently skip the backward pass.
:func:`svi_pair` adds both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from latentpg.errors import OptionError, SiteError
from latentpg.programs.policy import LatentPolicy
from latentpg.programs.rows import num_rows

SVIProgram = Callable[[Any, Tensor], Any]
"""A program as Pyro's ``SVI`` takes it: ``program(obs, action)``."""


class _NoOtherPlate(Messenger):
    """Refuse a plate inside the one that marks rows."""

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        # messengers further in have had their turn, those further out have not: what stands here is the program's own
        plates = [frame.name for frame in msg["cond_indep_stack"] if frame.vectorized]
        if plates:
            raise SiteError(
                "svi_pair()",
                f"site `{msg['name']}` is in a plate of the program's own",
                expected="plate-free programs: svi_pair adds the plate over rows",
                got=f"plate `{plates[0]}`",
                fix="give SVI your own two programs, which need no adapter",
            )


def svi_pair(policy: LatentPolicy, *, name: str = "latentpg") -> tuple[SVIProgram, SVIProgram]:
    """Return ``(model, guide)`` for ``pyro.infer.SVI(model, guide, optim, loss)``; call ``svi.step(obs, action)``.

    Rows are in a plate at dimension -1, so enumeration by ``TraceEnum_ELBO(max_plate_nesting=1)`` needs only
    ``pyro.infer.config_enumerate``. Pyro sums its loss over rows. The policy's parameters enter Pyro's store under
    ``name`` and are trained in place; call ``pyro.clear_param_store()`` before training another policy under the same
    name.

    Programs that bring a plate of their own, as those given to :func:`~latentpg.policies.from_pyro` may, are a
    :class:`~latentpg.errors.SiteError`: Pyro would put theirs beside ours and count every row B times.

    >>> from gymnasium import spaces
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> import torch
    >>> from latentpg.policies import GaussianPolicy
    >>> pyro.clear_param_store()
    >>> policy = GaussianPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    >>> svi = SVI(*svi_pair(policy), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    >>> svi.step(torch.zeros(5, 3), torch.zeros(5, 2)) > 0
    True
    """
    if not isinstance(policy, nn.Module):
        raise OptionError("svi_pair()", "`policy`", expected="an nn.Module", got=type(policy).__name__)
    module = policy

    def model(obs: Any, action: Tensor) -> Any:  # noqa: ANN401 (as the protocol)
        pyro.module(name, module)
        with pyro.plate("rows", num_rows(obs), dim=-1), _NoOtherPlate():
            return policy.model(obs, action)

    def guide(obs: Any, action: Tensor) -> Any:  # noqa: ANN401 (as the protocol)
        pyro.module(name, module)
        with pyro.plate("rows", num_rows(obs), dim=-1), _NoOtherPlate():
            return policy.guide(obs, action)

    return model, guide
