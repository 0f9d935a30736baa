"""The capturing messenger: one Pyro handler that runs a plate-free program over K particles and B rows.

Running a program under :class:`Capture` draws or injects each latent site, scores what is asked for, and swallows the
site's message, so that no trace is built. Networks that see only observations and actions run on ``[B]`` rows; only
what depends on a latent carries K, on the left. The result is equal to ``poutine.trace`` with ``poutine.replay`` on
programs with ``mask``, ``scale``, ``factor``, ``deterministic``, batch plates and dependent latents (a property test
holds it) and costs a fifth to a half less.

Shapes. With K particles a latent's distribution may have batch shape ``()``, ``[B]`` or, once an earlier latent has
brought K in, ``[K, B]``; ``()`` is expanded to the rows. Anything else is a :class:`~latentpg.errors.ShapeError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from latentpg.errors import ShapeError, SiteError, SupportError
from latentpg.programs.draws import draw
from latentpg.programs.rows import is_concrete

ACTION = "action"
"""The name every model gives to the site that the environment sees."""

LAST_GIVEN = "last given latent"
"""Where a run may stop: see :class:`Capture`."""

_FIX_ACTION = "actions are in policy coordinates: integers counted from zero, finite floats"
_FIX_LATENT = "pass what this policy drew, categories counted from zero, as `act(policy, obs).latents` has it"


_first_row: ContextVar[int] = ContextVar("latentpg_first_row", default=0)


@contextmanager
def rows_from(first: int) -> Iterator[None]:
    """Let errors count rows from ``first`` inside the scope: what runs is a block of a larger batch."""
    token = _first_row.set(first)
    try:
        yield
    finally:
        _first_row.reset(token)


class Reached(Exception):
    """Raised inside a program, and caught by the runner, when all that was asked for has been met."""


class Capture(Messenger):
    """Record the latents and log-probabilities of one program run; see the module's docstring.

    ``values`` are injected where their site is met and drawn otherwise. ``num_particles`` None means one draw a row,
    without a particle dimension. After the run ``latents`` holds each latent's value, ``log_latent`` and
    ``log_observed`` the log-probabilities by site, and ``distributions`` the distribution met at each site.

    ``stop=ACTION`` ends the run when the action is reached, before it is drawn or scored; ``stop=LAST_GIVEN`` already
    when every given latent has been met, which spares what a program computes for its action.
    """

    def __init__(
        self,
        program: str,
        rows: int,
        *,
        num_particles: int | None = None,
        values: Mapping[str, Tensor] | None = None,
        pathwise: bool = False,
        stop: str | None = None,
        score_latents: bool = True,
    ) -> None:
        """Say which program runs (for messages), on how many rows and particles, and which values are given."""
        super().__init__()
        self.program, self.rows, self.num_particles = program, rows, num_particles
        self.values: Mapping[str, Tensor] = {} if values is None else values
        self.pathwise, self.stop, self.score_latents = pathwise, stop, score_latents
        self.latents: dict[str, Tensor] = {}
        self.log_latent: dict[str, Tensor] = {}
        self.log_observed: dict[str, Tensor] = {}
        self.distributions: dict[str, Distribution] = {}
        self.action: Tensor | None = None
        self.action_was_observed = False

    # Pyro calls this for every message; answering it here saves the lookup by name of the base class.
    def _process_message(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message is an untyped dict)
        if msg["type"] != "sample":
            return
        fn = msg["fn"]
        if type(fn) is _Subsample:
            self._answer_plate(msg)
            return
        msg["stop"] = msg["done"] = True
        name = msg["name"]
        if (msg["infer"] and msg["infer"].get("_deterministic")) or (
            msg["is_observed"] and name != ACTION and _is_silent(fn)
        ):
            return
        if msg["cond_indep_stack"]:
            self._check_plates(msg)
        if name == ACTION:
            if self.stop is not None:
                self.distributions[ACTION] = fn
                raise Reached
            self._visit_action(msg, fn)
        elif msg["is_observed"]:
            self.log_observed[name] = self._score(msg, name, fn, msg["value"])
        else:
            self._visit_latent(msg, name, fn)
            if self.stop == LAST_GIVEN and self.latents.keys() == self.values.keys():
                raise Reached

    def _postprocess_message(self, msg: Any) -> None:  # noqa: ANN401 (see above)
        return

    def _answer_plate(self, msg: Any) -> None:  # noqa: ANN401 (see above)
        fn = msg["fn"]
        if fn.subsample_size is not None and fn.subsample_size < fn.size:
            raise SiteError(
                self.program,
                f"plate `{msg['name']}` subsamples its rows",
                expected="every row of the batch scored",
                got=f"{fn.subsample_size} of {fn.size}",
                fix="take minibatches outside the program",
            )
        if msg["value"] is None:  # Pyro's own .sample() of these indices is not traceable by torch.compile
            msg["value"] = torch.arange(fn.size, device=fn.device)
        msg["stop"] = msg["done"] = True

    def _check_plates(self, msg: Any) -> None:  # noqa: ANN401 (see above)
        """Refuse a plate where the particles are: at K of its size it would be taken for them without a word."""
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and frame.dim < -1 and frame.size > 1:
                raise ShapeError(
                    f"{self.program}()",
                    f"site `{msg['name']}` is in plate `{frame.name}` at dimension {frame.dim}",
                    expected="plates of rows, at dimension -1: the particles are to the left of it",
                    got=f"a plate of {frame.size} at dimension {frame.dim}",
                    fix="move what the plate repeats into the event, with .to_event(1)",
                )

    def _visit_latent(self, msg: Any, name: str, fn: Distribution) -> None:  # noqa: ANN401 (see above)
        sample_shape = self._missing_shape(name, fn)
        given = self.values.get(name)
        if given is None:
            given = draw(name, fn, sample_shape, pathwise=self.pathwise)
        else:
            self._check_value(name, fn, given)
        msg["value"] = self.latents[name] = given
        self.distributions[name] = fn
        if self.score_latents:
            self.log_latent[name] = self._score(msg, name, fn, given)

    def _visit_action(self, msg: Any, fn: Distribution) -> None:  # noqa: ANN401 (see above)
        self.distributions[ACTION] = fn
        self.action_was_observed = msg["is_observed"]
        if msg["is_observed"]:
            self._check_action(fn, msg["value"])
        else:
            msg["value"] = draw(ACTION, fn, self._missing_shape(ACTION, fn))
        self.action = msg["value"]
        self.log_observed[ACTION] = self._score(msg, ACTION, fn, msg["value"])

    def _score(self, msg: Any, name: str, fn: Distribution, value: Tensor) -> Tensor:  # noqa: ANN401 (see above)
        log_prob = fn.log_prob(value)
        if msg["mask"] is not None or not (isinstance(msg["scale"], float) and msg["scale"] == 1.0):
            log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        shape = tuple(log_prob.shape)
        if shape and shape != (self.rows,) and shape != (self.num_particles, self.rows):
            raise self._batch_error(name, shape, "log-probability")
        return log_prob

    def _missing_shape(self, name: str, fn: Distribution) -> tuple[int, ...]:
        """Say what to draw on top of the distribution's own batch shape to get ``[K, B]`` (or ``[B]``)."""
        batch, full = tuple(fn.batch_shape), self._full_shape()
        carries_particles = any(value.shape[:2] == full for value in self.latents.values())
        if batch == () or batch == (self.rows,) or (batch == full and carries_particles):
            return full[: len(full) - len(batch)]
        raise self._batch_error(name, batch, "batch")

    def _full_shape(self) -> tuple[int, ...]:
        return (self.rows,) if self.num_particles is None else (self.num_particles, self.rows)

    def _check_value(self, name: str, fn: Distribution, value: Tensor) -> None:
        expected = self._full_shape() + tuple(fn.event_shape)
        if tuple(value.shape) != expected:
            raise ShapeError(
                f"{self.program}()",
                f"latent `{name}`",
                expected=f"{self._describe_full()} + event {list(fn.event_shape)} = {list(expected)}",
                got=str(list(value.shape)),
                fix="pass latents as [K, B, ...] (recorded ones as [B, ...]) in the order of the rows",
            )
        # A category out of range is an index error deep in torch, and on a GPU the end of the process; a number out of
        # its bounds has a density of zero, which the weights tell of.
        if _is_enumerable(fn) and is_concrete():
            rows_dim = 0 if self.num_particles is None else 1
            _check_support(self.program, f"latent `{name}`", fn, value, _FIX_LATENT, rows_dim=rows_dim)

    def _check_action(self, fn: Distribution, value: Tensor) -> None:
        expected = (self.rows, *fn.event_shape)
        if tuple(value.shape) != expected:
            unsummed = len(fn.batch_shape) > 0 and tuple(fn.batch_shape) not in ((self.rows,), self._full_shape())
            squeeze = value.ndim == len(expected) + 1 and value.shape[-1] == 1
            raise ShapeError(
                f"{self.program}()",
                f"`{ACTION}`",
                expected=f"[B={self.rows}] + event {list(fn.event_shape)} = {list(expected)}",
                got=str(list(value.shape)),
                likely="event dimension not summed"
                if unsummed
                else ("a trailing dimension of one" if squeeze else None),
                fix="Normal(...).to_event(1)"
                if unsummed
                else ("action.squeeze(-1)" if squeeze else "one action a row"),
            )
        if is_concrete():
            _check_support(self.program, f"`{ACTION}`", fn, value, _FIX_ACTION)

    def _batch_error(self, name: str, shape: tuple[int, ...], kind: str) -> ShapeError:
        full = self._full_shape()
        unsummed = shape[: len(full)] == full or shape[:1] == (self.rows,)
        return ShapeError(
            f"{self.program}()",
            f"{kind} shape of site `{name}`",
            expected=f"[], [B={self.rows}] or {self._describe_full()}",
            got=str(list(shape)),
            likely="event dimension not summed" if unsummed else "a parameter whose batch is not the rows of `obs`",
            fix="Normal(...).to_event(1)" if unsummed else "compute the site's parameters from `obs`, one row each",
        )

    def _describe_full(self) -> str:
        if self.num_particles is None:
            return f"[B={self.rows}]"
        return f"[K={self.num_particles}, B={self.rows}]"


def _is_silent(fn: Distribution) -> bool:
    """Tell a reparameterised site's stand-in (a masked-out Delta): it carries no density."""
    return isinstance(fn, MaskedDistribution) and fn._mask is False


def is_real(support: constraints.Constraint | None) -> bool:
    """Tell whether a support is the whole line, or a vector of it."""
    return getattr(support, "base_constraint", support) is constraints.real


def _is_enumerable(fn: Distribution) -> bool:
    """Tell a distribution over finitely many values, alone or a vector of them."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn.has_enumerate_support


def _surely_inside(support: constraints.Constraint, value: Tensor) -> bool:
    """Tell by the value's sum or ends, which is quicker than to ask each entry, and may be unsure."""
    if is_real(support):
        return math.isfinite(float(value.detach().sum()))  # a finite sum has no NaN among its terms
    lowest, highest = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if isinstance(lowest, int) and isinstance(highest, int) and value.dtype == torch.int64 and value.numel():
        low, high = value.aminmax()
        return bool(low >= lowest) and bool(high <= highest)
    return False


def _check_support(program: str, what: str, fn: Distribution, value: Tensor, fix: str, *, rows_dim: int = 0) -> None:
    support = getattr(fn, "support", None)
    if support is None or _surely_inside(support, value):
        return
    inside = support.check(value)
    if bool(inside.all()):
        return
    outside = (~inside).nonzero()
    first, rows = outside[outside[:, rows_dim].argmin()], outside[:, rows_dim].unique()
    raise SupportError(
        f"{program}()",
        f"{what} outside its distribution's support",
        expected=str(support),
        got=f"{value[tuple(first)].tolist()} in row {_first_row.get() + int(rows[0])} ({len(rows)} such rows)",
        fix=fix,
    )
