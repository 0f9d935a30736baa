"""The slow reference: Pyro's own ``poutine``, one particle after another, on programs that Hypothesis puts together.

A :class:`Recipe` says which sites a program has and how each is dressed (plates, ``mask``, ``scale``, dependence on the
latents before it); :func:`build` makes the program of it. Every number in a program comes from a generator of its own,
so torch's stream is not touched.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from latentpg.programs import Categorical, DiagNormal, MultiBernoulli, MultiCategorical

OBS_SIZE = 3
"""Columns of an observation."""

Program = Callable[..., Any]


class Plain:
    """A policy out of two functions, and of parameters if they have any."""

    def __init__(
        self, model: Program, guide: Program | None = None, *, flatten: bool = False, prior: tuple[Tensor, ...] = ()
    ) -> None:
        """Take the programs; ``flatten`` says that they cannot broadcast over particles."""
        self.model, self.flatten_particles, self._prior = model, flatten, prior
        self.guide = (lambda obs, action: None) if guide is None else guide

    def prior_parameters(self) -> list[nn.Parameter]:
        return [nn.Parameter(tensor) if not isinstance(tensor, nn.Parameter) else tensor for tensor in self._prior]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return [nn.Parameter(torch.zeros((), dtype=torch.float64))]  # says that log-probabilities are float64

    def guide_parameters(self) -> list[nn.Parameter]:
        return []


CONTINUOUS = ("normal", "lean vector", "vector", "laplace")
DISCRETE = ("categorical", "lean categorical", "bernoulli", "coins", "dice")
EXTRAS = ("factor", "deterministic", "seen", "silent", "loop")


@dataclass(frozen=True)
class Site:
    """One sample site: its distribution, what its parameters are computed from, and what is wrapped around it."""

    kind: str
    parameters: str = "depends"  # on the latents before it; or "rows": on obs alone; or "nothing": batch shape ()
    mask: str = "none"
    scale: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A program, and the sizes it is run at."""

    seed: int
    rows: int
    particles: int
    latents: tuple[Site, ...]
    extras: tuple[str, ...] = ()
    action: Site = Site("normal")
    plate: bool = False

    def numbers(self, *shape: int) -> Tensor:
        """Give fixed numbers of this recipe in float64."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def observations(self) -> Tensor:
        return self.numbers(self.rows, OBS_SIZE)


def _site(kinds: tuple[str, ...], parameters: tuple[str, ...]) -> st.SearchStrategy[Site]:
    masks = st.sampled_from(("none", "none", "rows", "false", "distribution", "silenced"))
    scales = st.sampled_from((1.0, 1.0, 0.25, 3.0))
    return st.builds(Site, st.sampled_from(kinds), st.sampled_from(parameters), masks, scales)


def recipes() -> st.SearchStrategy[Recipe]:
    """Draw recipes: up to three latents, discrete and continuous mixed; K and B equal or not."""
    return st.builds(
        Recipe,
        seed=st.integers(0, 10**6),
        rows=st.integers(1, 4),
        particles=st.integers(1, 4),
        latents=st.lists(_site(CONTINUOUS + DISCRETE, ("depends", "rows", "nothing")), max_size=3).map(tuple),
        extras=st.lists(st.sampled_from(EXTRAS), unique=True, max_size=3).map(tuple),
        action=_site(CONTINUOUS + DISCRETE, ("depends",)),
        plate=st.booleans(),
    )


def _distribution(kind: str, x: Tensor) -> Any:  # noqa: ANN401 (any Pyro distribution)
    """Make a distribution of batch shape that of ``x``; the vectors have three entries."""
    steps = torch.arange(3, dtype=x.dtype)
    wide = x.unsqueeze(-1) + 0.5 * steps
    match kind:
        case "normal":
            return dist.Normal(x, 0.7)
        case "laplace":
            return dist.Laplace(x, 1.3)
        case "lean vector":
            return DiagNormal(wide, 0.2 * steps)
        case "vector":
            return dist.Normal(wide, 1.0 + steps).to_event(1)
        case "categorical":
            return dist.Categorical(logits=x.unsqueeze(-1) * steps)
        case "lean categorical":
            return Categorical(x.unsqueeze(-1) * steps)
        case "bernoulli":
            return dist.Bernoulli(logits=x)
        case "coins":
            return MultiBernoulli(wide)
        case "dice":
            return MultiCategorical(torch.cat([wide, -wide[..., :2]], -1), (3, 2))
    raise AssertionError(kind)


def event_of(kind: str) -> tuple[int, ...]:
    """Tell the event shape of a kind."""
    return {"lean vector": (3,), "vector": (3,), "coins": (3,), "dice": (2,)}.get(kind, ())


def example(kind: str, recipe: Recipe, *shape: int) -> Tensor:
    """Give values of a kind, ``shape + event``, that have nothing to do with the program."""
    numbers = recipe.numbers(*shape, *event_of(kind))
    if kind in CONTINUOUS:
        return numbers
    if kind in ("bernoulli", "coins"):
        return (numbers > 0).to(numbers.dtype)
    bounds = torch.tensor([3, 2] if kind == "dice" else 3)
    return (numbers.abs() * 1000).long() % bounds


def build(recipe: Recipe, *, with_action: bool = True) -> Program:
    """Make the program of a recipe: a model, or without an action a guide."""
    weights = recipe.numbers(12)

    def program(obs: Tensor, action: Tensor | None = None) -> None:
        seen = obs @ weights[:OBS_SIZE]
        with ExitStack() as stack:
            if recipe.plate:
                stack.enter_context(pyro.plate("rows", obs.shape[0], dim=-1))
            state = seen
            for i, site in enumerate(recipe.latents):
                x = {"depends": state, "rows": obs[:, 0], "nothing": weights[i]}[site.parameters]
                value = _sample(f"z{i}", site, x, obs)
                flat = value.to(obs.dtype)
                state = state + weights[4 + i] * (flat.sum(-1) if event_of(site.kind) else flat)
            for name in recipe.extras:
                _extra(name, state, obs)
            if with_action:
                _sample("action", recipe.action, state, obs, observed=action)

    return program


def _sample(name: str, site: Site, x: Tensor, obs: Tensor, *, observed: Tensor | None = None) -> Tensor:
    fn = _distribution(site.kind, x)
    if site.mask == "distribution":
        fn = fn.mask(_positive(obs))
    elif site.mask == "silenced":
        fn = fn.mask(False)
    with ExitStack() as stack:
        if site.mask == "rows":
            stack.enter_context(poutine.mask(mask=_positive(obs)))
        elif site.mask == "false":
            stack.enter_context(poutine.mask(mask=False))
        if site.scale != 1.0:
            stack.enter_context(poutine.scale(scale=site.scale))
        return pyro.sample(name, fn, obs=observed)


def _positive(obs: Tensor) -> Any:  # noqa: ANN401 (Pyro wants a BoolTensor, which no comparison is annotated with)
    return obs[:, 1] > 0


def _extra(name: str, state: Tensor, obs: Tensor) -> None:
    if name == "factor":
        pyro.factor("penalty", -0.1 * state.square(), has_rsample=False)
    elif name == "deterministic":
        pyro.deterministic("state", state)
    elif name == "seen":
        pyro.sample("seen", dist.Normal(state, 1.0), obs=obs[:, 2])
    elif name == "silent":
        pyro.sample("silent", dist.Normal(state, 1.0).mask(False), obs=obs[:, 2])
    else:  # a sequential plate inside the plate of rows
        for i in pyro.plate("parts", 2):
            pyro.sample(f"part{i}", dist.Normal(state * (1.0 + i), 1.0), obs=obs[:, 1])


def traced(
    program: Program, obs: Tensor, action: Tensor | None, latents: Mapping[str, Tensor], *, how: str
) -> tuple[Tensor, Tensor]:
    """Score particles one at a time by Pyro's handlers: log-probabilities ``[K, B]`` of latents and of the rest."""
    num_particles = next(iter(latents.values())).shape[0] if latents else 1
    parts = [
        _trace_one(program, obs, action, {name: value[k] for name, value in latents.items()}, how)
        for k in range(num_particles)
    ]
    return torch.stack([latent for latent, _ in parts]), torch.stack([rest for _, rest in parts])


def _trace_one(
    program: Program, obs: Tensor, action: Tensor | None, latents: dict[str, Tensor], how: str
) -> tuple[Tensor, Tensor]:
    if how == "condition":
        injected = poutine.condition(program, data=latents)
    else:
        earlier = poutine.Trace()
        for name, value in latents.items():
            earlier.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
        injected = poutine.replay(program, trace=earlier)
    trace = poutine.trace(injected).get_trace(obs, action)
    rows = obs.shape[0]
    total = {True: torch.zeros(rows, dtype=torch.float64), False: torch.zeros(rows, dtype=torch.float64)}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["fn"].__class__.__name__ != "_Subsample":
            fn: Any = site["fn"]
            log_prob = scale_and_mask(fn.log_prob(site["value"]), site["scale"], site["mask"])
            total[name in latents] = total[name in latents] + log_prob
    return total[True].expand(rows), total[False].expand(rows)


def off_by(ours: Tensor, reference: Tensor) -> float:
    """Measure the largest difference, relative where numbers are large; shapes must be the same, row for row."""
    assert ours.shape == reference.shape
    return float(((ours - reference).abs() / reference.abs().clamp(min=1.0)).detach().max())


@contextmanager
def stream_untouched() -> Iterator[None]:
    """Fail if anything is drawn from torch's global stream inside the scope."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global stream moved"


def bernstein(probability: Tensor, draws: int, *, alpha: float = 1e-9) -> Tensor:
    """Bound |frequency - probability| over that many iid draws, jointly over all entries, with certainty 1 - alpha."""
    log_term = math.log(2 * probability.numel() / alpha)
    variance = probability * (1 - probability)
    return (2 * variance * log_term / draws).sqrt() + log_term / (3 * draws)
