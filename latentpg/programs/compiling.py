"""Score compiled: ``torch.compile`` for the forward and backward pass of a policy's model.

Inside :func:`compiled_scoring`, log-joints are computed by code generated for the policy and the number of dimensions
of what comes in; batch size and number of particles may change freely. Compiled code cannot raise an error that looks
at numbers, so the test of the actions' support is computed with the rest and looked at afterwards, and whatever goes
wrong is run again as it was written, to be told in the library's own words.

Pyro is not touched: while a graph is traced, and only then, ``torch.compile`` reads ``_sample`` and ``_subsample``
in the place of the two functions of Pyro that build their message from a ``TypedDict``, which it cannot trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.poutine.runtime import am_i_wrapped, apply_stack
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from torch import Tensor

from latentpg.errors import EstimatorError
from latentpg.programs.blocks import scoring_with
from latentpg.programs.capture import ACTION
from latentpg.programs.policy import LatentPolicy
from latentpg.programs.rows import Observations
from latentpg.programs.run import Latents, score_in_one_piece, score_model

RECOMPILE_LIMIT = 64
"""Kinds of policy, times kinds of input (number of dimensions, type, one row, one particle), that are kept compiled."""


@contextmanager
def compiled_scoring() -> Iterator[None]:
    """Score by compiled code inside the scope: same values and gradients, in less time after the first step."""
    with scoring_with(_score):
        yield


def _score(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Float[Tensor, "K B"]:
    try:
        # torch.compile turns validation off for the whole process on its first use, and cannot trace it
        with pyro.settings.context(validate_distributions_torch=False):
            log_joint, inside = _compiled()(policy, obs, action, dict(latents))
    except Exception as error:  # whatever it is: the program as written says it better, if it fails as well
        score_in_one_piece(policy, obs, action, latents)
        cause = getattr(error, "inner_exception", error)  # a failed backend's own message only says that it failed
        raise EstimatorError(
            "compiled scoring",
            "this policy's model cannot be compiled",
            expected="a program that torch.compile can trace as one graph, and a C++ compiler",
            got=f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}",
            fix="use the estimator without Compiled(...), or write the model without what the line above names",
        ) from error
    if inside is not None and not bool(inside):
        score_in_one_piece(policy, obs, action, latents)  # raises, and names the row, unless it is padding only
    return log_joint


def _score_and_check(
    policy: LatentPolicy, obs: Observations, action: Tensor, latents: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    scores = score_model(policy, obs, action, latents)
    support = getattr(scores.distributions[ACTION], "support", None)
    return scores.log_prior + scores.log_likelihood, None if support is None else support.check(action).all()


@cache
def _compiled() -> Callable[..., Any]:
    """Prepare ``torch.compile`` on first use: importing it takes more than a second."""
    torch.compiler.substitute_in_graph(pyro.primitives.sample, skip_signature_check=True)(_sample)  # type: ignore[arg-type]
    torch.compiler.substitute_in_graph(SubsampleMessenger._subsample, skip_signature_check=True)(_subsample)
    # The generated tanh is several times slower than torch's own unless it is written in terms of exp.
    wanted: dict[str, str | int | bool | Callable[..., Any]] = {"cpp.use_decompose_tanh": True}
    options = {name: value for name, value in wanted.items() if name in torch._inductor.list_options()}
    limit: dict[str, Any] = {"recompile_limit": RECOMPILE_LIMIT}  # which torch's type hints leave out
    return torch.compile(_score_and_check, fullgraph=True, dynamic=True, options=options, **limit)


def _sample(
    name: str,
    fn: Any,  # noqa: ANN401 (a distribution)
    *args: Any,  # noqa: ANN401 (as Pyro's)
    obs: Tensor | None = None,
    obs_mask: Tensor | None = None,
    infer: dict[str, Any] | None = None,
    **kwargs: Any,  # noqa: ANN401 (as Pyro's)
) -> Any:  # noqa: ANN401 (as Pyro's)
    """Stand for ``pyro.sample`` under handlers, without ``obs_mask``."""
    if obs_mask is not None or not am_i_wrapped():
        raise NotImplementedError("compiled scoring traces pyro.sample under a handler and without obs_mask")
    infer = {} if infer is None else dict(infer)
    observed = infer.pop("is_observed", obs is not None)
    return _send(name, fn, obs, infer, observed, args, kwargs)


def _subsample(
    name: str,
    size: int | None = None,
    subsample_size: int | None = None,
    subsample: Tensor | None = None,
    use_cuda: bool | None = None,
    device: str | None = None,
) -> tuple[int, int, Tensor | None]:
    """Stand for what ``pyro.plate`` does to learn its indices."""
    if size is None:
        return -1, -1, None
    fn = _Subsample(size, subsample_size, use_cuda, device)
    indices = _send(name, fn, subsample, {}, False, (), {})
    return size, indices.shape[0] if subsample_size is None else subsample_size, indices


def _send(
    name: str,
    fn: Any,  # noqa: ANN401 (a distribution)
    value: Tensor | None,
    infer: dict[str, Any],
    is_observed: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401 (what the handlers answer)
    message: Any = {
        "type": "sample",
        "name": name,
        "fn": fn,
        "is_observed": is_observed,
        "args": args,
        "kwargs": kwargs,
        "value": value,
        "infer": infer,
        "scale": 1.0,
        "mask": None,
        "cond_indep_stack": (),
        "done": False,
        "stop": False,
        "continuation": None,
    }
    apply_stack(message)
    return message["value"]
