r"""Adapt a stranger's Pyro programs: plates, ``pyro.param``, ``pyro.module``, no broadcasting over particles.

Left in Pyro's global store, parameters would not be in ``policy.parameters()``, and a deep-copied reference policy
would follow the live one, so that the KL between them is always zero. :func:`from_pyro` runs both programs once, takes
over every parameter it meets, and from then on answers the programs' ``pyro.param`` statements itself; modules run with
the policy's own tensors swapped in. A copy of the policy is then a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.utils.stateless import _reparametrize_module

from latentpg.errors import SiteError
from latentpg.programs.rows import Observations
from latentpg.programs.run import draw_guide, score_model

Program = Callable[..., Any]
"""A Pyro program: ``model(obs, action=None)`` or ``guide(obs, action)``."""

Code = TypeVar("Code")

_MODULE_DIVIDER = "$$$"
_NOT_IN_A_NAME = str.maketrans({".": "/"})


def _key(kind: str, name: str) -> str:
    """Name a parameter or module so that torch takes it: no dots, and nothing a container has as an attribute."""
    return f"{kind}/{name.translate(_NOT_IN_A_NAME)}"


class ForeignPolicy(nn.Module):
    """A policy made of two programs that were written elsewhere; build it with :func:`from_pyro`.

    ``flatten_particles`` says that the programs see K * B rows instead of a leading particle dimension.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        stored: Mapping[str, tuple[Tensor, constraints.Constraint]],
        modules: Mapping[str, nn.Module],
        *,
        flatten_particles: bool,
    ) -> None:
        """Take the programs, the parameters met in the store (unconstrained) and the modules met."""
        super().__init__()
        self.flatten_particles = flatten_particles
        self._programs = _Shared((model, guide))
        self._constraints = {name: constraint for name, (_, constraint) in stored.items()}
        self.stored = nn.ParameterDict(
            {_key("param", name): nn.Parameter(value) for name, (value, _) in stored.items()}
        )
        # The modules themselves stay the stranger's; the tensors are ours, and are swapped in while a program runs.
        self._skeletons = _Shared(dict(modules))
        self.module_tensors = nn.ModuleDict({_key("module", name): _Tensors(m) for name, m in modules.items()})
        # A PyroModule writes its constrained parameters into the global store as it runs.
        self._writes_to_store = any(isinstance(part, PyroModule) for m in modules.values() for part in m.modules())
        self.groups: dict[str, list[str]] = {"prior": [], "decoder": [], "guide": []}

    def model(self, obs: Any, action: Tensor | None = None) -> Any:  # noqa: ANN401 (as the protocol)
        """Run the stranger's model on this policy's parameters."""
        with self._own_parameters():
            return self._programs.value[0](obs, action)

    def guide(self, obs: Any, action: Tensor | None) -> Any:  # noqa: ANN401 (as the protocol)
        """Run the stranger's guide on this policy's parameters."""
        with self._own_parameters():
            return self._programs.value[1](obs, action)

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters that log p(z | s) depends on and log p(a | s, z) does not."""
        return self._group("prior")

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters that log p(a | s, z) depends on; those shared with the prior or the guide belong here too."""
        return self._group("decoder")

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters that only log q(z | s, a) depends on."""
        return self._group("guide")

    def _group(self, name: str) -> list[nn.Parameter]:
        named = dict(self.named_parameters())
        return [named[key] for key in self.groups[name]]

    @contextmanager
    def _own_parameters(self) -> Iterator[None]:
        values = {}
        for name, constraint in self._constraints.items():
            values[name] = transform_to(constraint)(self.stored[_key("param", name)])
        with ExitStack() as stack:
            if self._writes_to_store:
                stack.enter_context(pyro.get_param_store().scope())
            stack.enter_context(_AnswerParameters(values, from_store=self._writes_to_store))
            for name, skeleton in self._skeletons.value.items():
                tensors = cast(_Tensors, self.module_tensors[_key("module", name)]).tensors()
                stack.enter_context(_reparametrize_module(skeleton, tensors, tie_weights=True))
            yield


class _Shared(Generic[Code]):
    """Programs and modules that copies of a policy have in common: only tensors are copied.

    A copied bound method would run on a copied owner, whose tensors nobody swaps.
    """

    def __init__(self, value: Code) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared[Code]:
        return self


class _Tensors(nn.Module):
    """The parameters and buffers of a module under their own names, without its code."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        for name, parameter in module.named_parameters():
            self.register_parameter(self._rename(name), parameter)
        for name, buffer in module.named_buffers():
            self.register_buffer(self._rename(name), buffer)

    def _rename(self, name: str) -> str:
        self.names[name] = _key("tensor", name)
        return self.names[name]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, ours) for name, ours in self.names.items()}


class _AnswerParameters(Messenger):
    """Answer ``pyro.param`` with given values, and the statements modules make with the module's present tensors."""

    def __init__(self, values: Mapping[str, Tensor], *, from_store: bool) -> None:
        super().__init__()
        self.values, self.from_store = values, from_store

    def _pyro_param(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if _is_of_module(msg):
            msg["value"] = msg["args"][1]
        elif msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif self.from_store and msg["name"] in pyro.get_param_store():
            msg["value"] = pyro.get_param_store()[msg["name"]]
        else:
            raise SiteError(
                "from_pyro()",
                f"parameter `{msg['name']}` was not met when the programs were first run",
                expected=str(sorted(self.values)),
                got=msg["name"],
                likely="a parameter that only some observations or actions reach",
                fix="pass an example batch to from_pyro() on which every parameter is reached",
            )
        msg["done"] = msg["stop"] = True


def _is_of_module(msg: Any) -> bool:  # noqa: ANN401 (Pyro's message)
    """Tell the statements of ``pyro.module``, and of a PyroModule about a tensor it holds, from a program's own."""
    return _MODULE_DIVIDER in msg["name"] or (len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter))


@dataclass(frozen=True)
class _Bare:
    """The programs as they came, without parameters of their own."""

    model: Program
    guide: Program
    flatten_particles: bool

    def prior_parameters(self) -> list[nn.Parameter]:
        return []

    decoder_parameters = guide_parameters = prior_parameters


class _Discover(Messenger):
    """Note every parameter statement of a run, with its constraint, while answering it afresh.

    It runs in a store of its own; ``trained`` holds the caller's.
    """

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.trained = trained
        self.stored: dict[str, tuple[Tensor, constraints.Constraint]] = {}
        self.live: list[tuple[str, Tensor]] = []

    def _pyro_param(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        name, initial = (*msg["args"], None)[:2]
        store = pyro.get_param_store()
        msg["done"] = msg["stop"] = True
        if _is_of_module(msg):
            self.live.append((name, initial))
            msg["value"] = initial
            return
        if name in store:  # a PyroModule has just put it there
            msg["value"] = store[name]
            self.live.append((name, msg["value"].unconstrained()))
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if name not in self.stored:
            # A value that was trained and left in the store counts for more than the statement's initial one.
            value = self.trained[name] if name in self.trained else initial() if callable(initial) else initial
            if value is None:
                raise SiteError(
                    "from_pyro()", f"parameter `{name}` has no initial value", expected="a tensor", got="None"
                )
            value = torch.as_tensor(value).detach()
            self.stored[name] = (transform_to(constraint).inv(value).clone(), constraint)
        value, constraint = self.stored[name]
        msg["value"] = transform_to(constraint)(value)


def from_pyro(
    model: Program,
    guide: Program,
    obs: Observations,
    action: Tensor,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    flatten_particles: bool = False,
) -> ForeignPolicy:
    r"""Make a policy of anybody's two Pyro programs.

    ``model(obs, action=None)`` must sample its latents and the site ``"action"`` with ``obs=action``; ``guide(obs,
    action)`` the same latents. ``obs [B, ...]`` and ``action [B, ...]`` are an example batch on which both are run
    once. Batch plates, ``factor``, ``deterministic``, ``mask``, ``scale`` and dependent latents are understood.
    ``pyro.param`` statements and modules named by ``pyro.module`` are found; so is the module that ``model`` or
    ``guide`` is, or is a method of, a ``PyroModule`` among them. Modules used without any of these are passed in
    ``modules``, by any name. ``flatten_particles=True`` is for programs that cannot broadcast a leading particle
    dimension, such as those that ``torch.cat([obs, z], -1)``: they run on K * B rows.

    Which parameters are phi, theta and psi is found by differentiating log p(z | s), log p(a | s, z) and log q. One
    that several depend on belongs to the decoder. The module's parameters stay the caller's: training the policy trains
    them.

    Raises :class:`~latentpg.errors.SiteError` if no parameter is found or the programs do not fit.

    >>> import pyro.distributions as dist
    >>> def model(obs, action=None):
    ...     loc = pyro.param("loc", torch.tensor(0.0))
    ...     with pyro.plate("rows", obs.shape[0]):
    ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
    ...         pyro.sample("action", dist.Normal(z, 1.0), obs=action)
    >>> def guide(obs, action):
    ...     slope = pyro.param("slope", torch.tensor(0.5))
    ...     with pyro.plate("rows", obs.shape[0]):
    ...         pyro.sample("z", dist.Normal(slope * action, 1.0))
    >>> policy = from_pyro(model, guide, torch.zeros(4, 1), torch.zeros(4))
    >>> len(policy.prior_parameters()), len(policy.decoder_parameters()), len(policy.guide_parameters())
    (1, 0, 1)
    """
    found = dict(modules or {})
    for program in (model, guide):
        owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
        if isinstance(owner, nn.Module) and not any(owner is known for known in found.values()):
            found[f"owner{len(found)}"] = owner
    store = pyro.get_param_store()
    discover = _Discover({name: store[name] for name in store})
    probe = _Bare(model, guide, flatten_particles)
    with torch.no_grad(), discover, _noting_modules(found):
        with store.scope():
            drawn = draw_guide(probe, obs, action, num_particles=2)
        with store.scope():
            score_model(probe, obs, action, drawn.latents)
    _check_reachable(discover.live, found)
    policy = ForeignPolicy(model, guide, discover.stored, _outermost(found), flatten_particles=flatten_particles)
    if not any(True for _ in policy.parameters()):
        raise SiteError(
            "from_pyro()",
            "no parameter was found in either program",
            expected="pyro.param or pyro.module statements, or methods of an nn.Module",
            got="none",
            likely="networks used by the programs without pyro.module",
            fix='from_pyro(..., modules={"decoder": decoder, "guide": guide_net})',
        )
    policy.groups = _group_parameters(policy, obs, action)
    return policy


@contextmanager
def _noting_modules(found: dict[str, nn.Module]) -> Iterator[None]:
    """Note every module a program passes to ``pyro.module`` while the scope lasts."""
    original = pyro.module

    def noting(name: str, nn_module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ANN401 (Pyro's own)
        if not any(nn_module is known for known in found.values()):
            found[name if name not in found else f"{name}{len(found)}"] = nn_module
        return original(name, nn_module, *args, **kwargs)

    pyro.module = noting
    try:
        yield
    finally:
        pyro.module = original


def _outermost(found: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Drop a module that another one contains: its tensors are swapped with the container's."""
    return {
        name: module
        for name, module in found.items()
        if not any(module is part for other in found.values() if other is not module for part in other.modules())
    }


def _check_reachable(live: Iterable[tuple[str, Tensor]], found: Mapping[str, nn.Module]) -> None:
    known = {id(parameter) for module in found.values() for parameter in module.parameters()}
    for name, tensor in live:
        if id(tensor) not in known:
            raise SiteError(
                "from_pyro()",
                f"the module behind parameter `{name}` could not be found",
                expected="modules named by pyro.module(...), called as an attribute of `pyro`",
                got="a parameter without its module",
                likely="`from pyro import module`, or a PyroModule that the program uses without being a method of it",
                fix='from_pyro(..., modules={"name": module})',
            )


def _group_parameters(policy: ForeignPolicy, obs: Observations, action: Tensor) -> dict[str, list[str]]:
    """Sort parameters by what depends on them, found by differentiating each density once."""
    named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        latents = draw_guide(policy, obs, action, num_particles=2).latents
    scores = score_model(policy, obs, action, latents)
    from_prior = _reached(scores.log_prior, named)
    from_decoder = _reached(scores.log_likelihood, named)
    drawn = draw_guide(policy, obs, action, num_particles=2)
    from_guide = _reached(drawn.log_prob, named)
    decoder = {name for name in named if name in from_decoder or (name in from_prior and name in from_guide)}
    return {
        "prior": [name for name in named if name in from_prior and name not in decoder],
        "decoder": [name for name in named if name in decoder],
        "guide": [name for name in named if name in from_guide and name not in from_prior and name not in decoder],
    }


def _reached(value: Tensor, named: Mapping[str, nn.Parameter]) -> set[str]:
    if not value.requires_grad:
        return set()
    gradients = torch.autograd.grad(value.sum(), list(named.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
