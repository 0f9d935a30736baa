"""A pretended graphics card: tensors that say they lie on a device ``card``, and are computed by the processor.

Torch refuses to mix them with the processor's, as it does with a real card's, so what was made on the wrong device is
found out on a machine without a card. It stands on an experimental interface of torch for backends that are written in
Python, and cannot be taken out of a process again: ``python -m tests.learners.pretended_card`` runs every learner (or
those that are named) on it and on the processor, and prints what is off. Random numbers come from one stream, so that
both must nearly agree: a few draws fall on the other side of a threshold, because sums are taken in another order.

:mod:`tests.cloning.pretended_card` and :mod:`tests.studies.pretended_card` do so with cloning and with studies.

It says nothing of speed, of kernels, or of a card's own random streams.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

CARD = "card"
_held: dict[int, Tensor] = {}  # what the tensors of a storage hold
_libraries: list[Any] = []
_kept: list[Tensor] = []  # a storage that is freed would give its number to another


def pretend() -> None:
    """Let there be a card."""
    backend_registration._setup_privateuseone_for_python_backend(CARD)
    getattr(torch, CARD).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # which autocast asks for
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_compute, "PrivateUse1")
    _libraries.extend([every, own])
    for name in ("arange", "arange.start", "arange.start_step", "randperm", "randperm.generator"):
        own.impl(name, _making(_operator(name)), "PrivateUse1")
    for name in ("logsumexp", "logaddexp", "quantile", "quantile.scalar"):
        own.impl(name, _computing(_operator(name)), "PrivateUse1")
    own.impl("squeeze_.dim", _squeeze_, "PrivateUse1")
    deepcopy = Tensor.__deepcopy__
    Tensor.__deepcopy__ = lambda self, memo: self.detach().clone() if _is_on(self) else deepcopy(self, memo)  # type: ignore[method-assign]
    torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]  # its tensors have no versions


def _operator(name: str) -> Any:  # noqa: ANN401 (torch's)
    first, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, first), overload or "default")


def _making(operator: Any) -> Callable[..., Tensor]:  # noqa: ANN401
    return lambda *args, **kwargs: _put(operator(*args, **{**kwargs, "device": torch.device("cpu")}))


def _computing(operator: Any) -> Callable[..., Any]:  # noqa: ANN401
    return lambda *args, **kwargs: _compute(operator, *args, **kwargs)


def _squeeze_(value: Tensor, dim: int) -> Tensor:
    value.data = _put(_content(value).squeeze(dim))
    return value


def _is_on(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == CARD


def _put(content: Tensor) -> Tensor:
    made: Tensor = torch._C._acc.create_empty_tensor(content.shape, content.dtype)
    _held[made.untyped_storage()._cdata] = content
    _kept.append(made)
    return made


def _content(value: Any) -> Any:  # noqa: ANN401 (any argument)
    if not _is_on(value):
        return value
    held = _held[value.untyped_storage()._cdata]
    if held.shape == value.shape:
        return held
    return held.reshape(value.shape) if held.numel() == value.numel() else held.expand(value.shape)


def _compute(operator: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Compute what an operator asks of the card."""
    name = operator.name()
    if name.startswith("aten::_copy_from"):
        _content(args[1]).copy_(_content(args[0]))
        return args[1]
    given, form = pytree.tree_flatten((args, kwargs))
    for value in given:
        if isinstance(value, Tensor) and not _is_on(value) and value.ndim and "copy" not in name:
            raise RuntimeError(f"{name}: a tensor of the processor among those of the card")
    inner: list[Any] = [torch.device("cpu") if isinstance(value, torch.device) else _content(value) for value in given]
    if name.startswith(("aten::as_strided", "aten::view")):
        inner[0] = inner[0].contiguous()  # as the tensor that holds it says it lies
    inner = [torch.tensor(v) if _is_wrapped(operator, place, v) else v for place, v in enumerate(inner)]
    if name == "aten::_fused_adam_":  # which goes by the memory of parameters and gradients, laid out alike
        size = len(args[0])
        inner[size : 2 * size] = [
            torch.empty_like(p).copy_(g) for p, g in zip(inner, inner[size : 2 * size], strict=False)
        ]
    inner_args, inner_kwargs = pytree.tree_unflatten(inner, form)
    found = operator(*inner_args, **inner_kwargs)
    for value, content in zip(given, inner, strict=True):
        if _is_on(value) and value.shape != content.shape:
            value.data = _put(content)  # an output that was resized
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
        return found
    return pytree.tree_map(lambda part: _placed(part, given, inner), found)


def _is_wrapped(operator: Any, place: int, value: object) -> bool:  # noqa: ANN401
    """Tell whether a number stands where a tensor is wanted, as dispatch has it of numbers that became tensors."""
    wanted = operator._schema.arguments
    return isinstance(value, int | float) and place < len(wanted) and str(wanted[place].type) == "Tensor"


def _placed(part: Any, given: list[Any], inner: list[Any]) -> Any:  # noqa: ANN401
    if not isinstance(part, Tensor):
        return part
    for value, content in zip(given, inner, strict=True):
        if content is part:
            return value
    return _put(part)


def learners() -> dict[str, Callable[[str], Any]]:
    """Build a learner of each kind on a device, small and with all that it can have on."""
    from torch import nn

    from latentpg import learners
    from latentpg.estimators import ConditionalIS, Exact
    from latentpg.estimators.guides import ConditionalWake, Recorded
    from latentpg.learners import Agent, AgentOptions
    from latentpg.rollout import ObservationNormalizer, make_envs
    from tests.learners.small import critic_for, policy_for

    options = AgentOptions(batch_size=16, gap_every=1, entropy_coefficient=0.1)
    held: dict[str, Any] = {"max_steps": 20, "on_max_steps": "truncate"}

    def build(kind: Any, made: Any, device: str, estimator: Any, critic: bool) -> Any:  # noqa: ANN401
        envs, normalizer = make_envs("CartPole-v1", 2), ObservationNormalizer(4)
        policy = policy_for(envs, encoder=normalizer).to(device)
        objective = ConditionalWake() if isinstance(estimator, ConditionalIS) else Recorded()
        agent = Agent(policy, estimator=estimator, objective=objective, options=options)
        value = [nn.Sequential(normalizer, critic_for(envs)).to(device)] if critic else []
        return kind(envs, agent, *value, options=made, seed=0, normalizer=normalizer)

    def with_(kind: str, estimator: Any = None, *, critic: bool = True, **given: Any) -> Any:  # noqa: ANN401
        made = getattr(learners, f"{kind}Options")(**given)
        name = {"Online": "OnlineActorCritic"}.get(kind, kind)
        return lambda device: build(getattr(learners, name), made, device, estimator or ConditionalIS(4), critic)

    found: dict[str, Callable[[str], Any]] = {
        "ppo": with_("PPO", num_steps=16, num_epochs=2, normalize_reward=True, target_kl=0.1, kl_coefficient=0.1),
        "ppo, exact": with_("PPO", Exact(), num_steps=8, num_epochs=1),
        "a2c": with_("A2C", num_steps=8, normalize_reward=True, normalize_advantage=True, discount_gradient=True),
        "online": with_("Online", num_steps=3, actor_trace_decay=0.5, critic_trace_decay=0.5),
        "reinforce": with_("Reinforce", num_episodes=3, baseline="state-value", **held),
        "reinforce, least variance": with_(
            "Reinforce", num_episodes=3, baseline="variance-optimal", credit="total", latent="episode",
            critic=False, **held,
        ),
        "grpo": with_("GRPO", num_groups=2, group_size=2, num_epochs=2, kl_coefficient=0.1, critic=False, **held),
        "grpo, held": with_("GRPO", num_groups=2, group_size=2, latent="episode", critic=False, **held),
        "grpo, sequences": with_(
            "GRPO", num_groups=2, group_size=2, ratio="sequence", advantage="batch-std", noise="independent",
            critic=False, **held,
        ),
    }  # fmt: skip
    return found


def on_the_pretended_card(module: str, *names: str) -> str:
    """Run the cases of a module in a process of its own, all of which must be right; return what it says."""
    command = [sys.executable, "-m", module, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert told.returncode == 0, told.stdout + told.stderr[-2000:]
    return told.stdout


def off(name: str, make: Callable[[str], Any]) -> str | None:
    """Say what is wrong with a learner's updates on the card, or None: its numbers are the processor's."""
    told: dict[str, list[dict[str, float]]] = {}
    for device in ("cpu", CARD):
        learner = make(device)
        found = [dict(learner.update())]
        state = {part: value.cpu() for part, value in learner.state().items()}
        found.append(dict(learner.update()))
        learner.restore(state)
        if (again := dict(learner.update())) != found[1]:
            return f"{name}: on {device} it does not go on from where it was: {again} and {found[1]}"
        told[device] = found
    for mine, theirs in zip(told[CARD], told["cpu"], strict=True):
        for part in {**mine, **theirs}:
            if not abs(mine[part] - theirs[part]) <= 0.02 + 0.05 * abs(theirs[part]):
                return f"{name}: {part} is {mine[part]}, and {theirs[part]} on the processor"
    return None


def told_of(cases: Mapping[str, Callable[[], str | None]]) -> int:
    """Pretend a card, run the cases that the command line names (or all), print what is off, and return the status."""
    torch.set_num_threads(1)
    pretend()
    warnings.simplefilter("ignore")  # of outputs that are resized, which is this card's way
    try:
        torch.ones(2, device=CARD) + torch.ones(2)
        wrong = ["the card takes tensors of the processor"]
        print(f"off {wrong[0]}")
    except RuntimeError:
        wrong = []
    for name in sys.argv[1:] or cases:
        start = time.process_time()
        try:
            found = cases[name]()
        except Exception as error:
            places = [
                f"{f.filename}:{f.lineno}"
                for f in traceback.extract_tb(error.__traceback__)
                if "latentpg" in f.filename
            ]
            found = f"{name}: {type(error).__name__} at {places[-3:]}: {str(error)[:300]}"
        wrong += [] if found is None else [found]
        seconds = time.process_time() - start
        print(f"{'ok ' if found is None else 'off'} {name}, {seconds:.1f} s", found or "", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(told_of({name: partial(off, name, make) for name, make in learners().items()}))
