r"""Run a policy's two programs: act, propose, score, enumerate, dream.

Shapes, everywhere: ``obs`` leads with B, ``action`` is ``[B, ...]``, each latent ``[K, B, ...]`` and each
log-probability ``[K, B]``. Nothing here chooses a gradient: what is differentiable is what autograd sees, and a caller
who wants none says ``torch.no_grad()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent

from latentpg.errors import OptionError, ShapeError, SiteError
from latentpg.programs.capture import ACTION, LAST_GIVEN, Capture, Reached
from latentpg.programs.policy import LatentPolicy, parameter_dtype
from latentpg.programs.rows import Observations, Span, is_concrete, num_rows, repeat_rows

Latents = Mapping[str, Tensor]
"""Site name to value, ``[K, B, ...]`` for particles and ``[B, ...]`` for what was recorded."""


@dataclass(frozen=True)
class Acted:
    """What acting leaves behind.

    The action ``[B, ...]``, the latents ``[B, ...]`` behind it, and log p(z, a | s) ``[B]``.
    """

    action: Tensor
    latents: Latents
    log_joint: Float[Tensor, " B"]


@dataclass(frozen=True)
class Drawn:
    """Latents ``[K, B, ...]`` and their log-density ``[K, B]`` under the program that was run, in all and by site.

    ``distributions`` holds what was met at each site.
    """

    latents: Latents
    log_prob: Float[Tensor, "K B"]
    distributions: Mapping[str, Distribution]
    log_prob_by_site: Mapping[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """log p(z | s) and log p(a | s, z), each ``[K, B]``, and the distributions met."""

    log_prior: Float[Tensor, "K B"]
    log_likelihood: Float[Tensor, "K B"]
    distributions: Mapping[str, Distribution]


def act(policy: LatentPolicy, obs: Observations) -> Acted:
    """Draw z ~ p_phi(z | s), then a ~ p_theta(a | s, z), for every row, without a gradient.

    Given (s, a), the z it returns is an exact draw from the posterior p(z | s, a) at the present parameters.
    """
    with torch.no_grad():
        run = _run(policy, "model", obs, None, num_particles=None)
        if run.action is None:
            raise _no_action(run)
        log_joint = _total(run, latent=True, observed=True).clone()
    return Acted(run.action, run.latents, log_joint)


def draw_prior(policy: LatentPolicy, obs: Observations, *, num_particles: int) -> Drawn:
    """Draw K latents a row from p_phi(z | s).

    The program is left at its action; what it computes on the way, such as the decoder's network, is computed.
    """
    return _drawn(_run(policy, "model", obs, None, num_particles=num_particles, stop=ACTION))


def draw_guide(
    policy: LatentPolicy, obs: Observations, action: Tensor, *, num_particles: int, pathwise: bool = False
) -> Drawn:
    """Draw K latents a row from q_psi(z | s, a).

    ``pathwise`` keeps them differentiable in psi where that is possible.
    """
    return _drawn(_run(policy, "guide", obs, action, num_particles=num_particles, pathwise=pathwise))


def score_prior(policy: LatentPolicy, obs: Observations, latents: Latents) -> Drawn:
    """Score given latents under p_phi(z | s); the program is left once it has met them all."""
    return _drawn(
        _run(policy, "model", obs, None, num_particles=count_particles(latents), values=latents, stop=LAST_GIVEN)
    )


def score_guide(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Drawn:
    """Score given latents under q_psi(z | s, a)."""
    return _drawn(_run(policy, "guide", obs, action, num_particles=count_particles(latents), values=latents))


def score_model(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Scores:
    """Score given latents and the action under the model, prior and likelihood apart, in one piece."""
    run = _run(policy, "model", obs, action, num_particles=count_particles(latents), values=latents)
    return Scores(_total(run, latent=True), _total(run, observed=True), run.distributions)


def conditionals(policy: LatentPolicy, obs: Observations, latents: Latents) -> Mapping[str, Distribution]:
    """Return the model's distribution at each latent site and at the action, given latents ``[K, B, ...]``."""
    return _run(
        policy, "model", obs, None, num_particles=count_particles(latents), values=latents, stop=ACTION
    ).distributions


def score_in_one_piece(
    policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents
) -> Float[Tensor, "K B"]:
    """Compute what :func:`log_joint` does for all rows at once, as the program is written."""
    run = _run(policy, "model", obs, action, num_particles=count_particles(latents), values=latents)
    return _total(run, latent=True, observed=True)


def support(policy: LatentPolicy, obs: Observations) -> Latents:
    """List every joint value of the model's discrete latents as particles ``[C, B]``; C is the product of their sizes.

    Sizes may not depend on another latent's value. A continuous or infinite site is a
    :class:`~latentpg.errors.SiteError`.
    """
    rows = num_rows(obs)
    sizes = {}
    with torch.no_grad():
        probe = draw_prior(policy, obs, num_particles=1)
        for name, fn in probe.distributions.items():
            sizes[name] = _finite_support(name, fn)
    if not sizes:
        return {}
    axes = [torch.arange(len(values), device=values.device) for values in sizes.values()]
    indices = torch.cartesian_prod(*axes).reshape(-1, len(sizes))
    latents = {}
    for column, (name, values) in enumerate(sizes.items()):
        chosen = values[indices[:, column]]
        latents[name] = chosen.unsqueeze(1).expand(chosen.shape[0], rows, *chosen.shape[1:])
    return latents


def _drawn(run: _Run) -> Drawn:
    """Hand on a run's latents and their density.

    What a guide observes (a ``factor``) counts towards it; what a model observes on the way is likelihood, not prior.
    """
    density = _total(run, latent=True, observed=run.program == "guide")
    distributions = {name: run.distributions[name] for name in run.latents}
    return Drawn(run.latents, density, distributions, run.log_latent)


def _finite_support(name: str, fn: Distribution) -> Tensor:
    """Return the support ``[C, *event]`` of one site, or say why it has none."""
    if not fn.has_enumerate_support:
        hidden = isinstance(fn, Independent) and fn.base_dist.has_enumerate_support
        kind = "continuous" if fn.has_rsample else "a vector of sites" if hidden else "of infinite support"
        raise SiteError(
            "enumeration",
            f"latent `{name}` is {kind}",
            expected="discrete latents of finite support",
            got=type(fn).__name__,
            likely="to_event(1) of a discrete distribution, which has no support to list" if hidden else None,
            fix="MultiBernoulli or MultiCategorical, which are vectors that have one"
            if hidden
            else "an estimator that samples (ConditionalIS, PosteriorIS), or Quadrature up to 3 Gaussian dimensions",
        )
    values = fn.enumerate_support(expand=False)
    return values.reshape(values.shape[0], *fn.event_shape)


@dataclass(frozen=True)
class _Run:
    """A finished run with K on the left of everything (no K when the run had none)."""

    program: str
    shape: tuple[int, ...]
    latents: dict[str, Tensor]
    log_latent: dict[str, Tensor]
    log_observed: dict[str, Tensor]
    distributions: dict[str, Distribution]
    action: Tensor | None
    policy: LatentPolicy
    device: torch.device


def _total(run: _Run, *, latent: bool = False, observed: bool = False) -> Tensor:
    parts = [*run.log_latent.values()] * latent + [*run.log_observed.values()] * observed
    if not parts:
        return torch.zeros(run.shape, dtype=parameter_dtype(run.policy), device=run.device)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.expand(run.shape)


def _run(
    policy: LatentPolicy,
    program: str,
    obs: Observations,
    action: Tensor | None,
    *,
    num_particles: int | None,
    values: Latents | None = None,
    pathwise: bool = False,
    stop: str | None = None,
) -> _Run:
    """Run one program under the capturing messenger, as K * B rows if the policy cannot broadcast over particles."""
    rows = num_rows(obs)
    if num_particles is not None and num_particles < 1:
        raise OptionError(
            program, "`num_particles`", expected="an integer >= 1", got=repr(num_particles), fix="num_particles=8"
        )
    _check_first_steps(obs)
    if action is not None:
        check_rows(action, rows)
    shape = (rows,) if num_particles is None else (num_particles, rows)
    flatten = num_particles is not None and getattr(policy, "flatten_particles", False)
    given = values
    if flatten:
        assert num_particles is not None
        obs, rows = repeat_rows(obs, num_particles), num_particles * rows
        action = None if action is None else repeat_rows(action, num_particles)
        given = None if values is None else {name: value.flatten(0, 1) for name, value in values.items()}
    capture = Capture(
        program,
        rows,
        num_particles=None if flatten else num_particles,
        values=given,
        pathwise=pathwise,
        stop=stop,
    )
    _call(policy, program, capture, obs, action)
    if values is not None:
        _check_sites(program, capture, values)
    if program == "model" and stop is None:
        _check_action_site(capture, observed=action is not None)
    recorded = (capture.latents, capture.log_latent, capture.log_observed)
    latents, log_latent, log_observed = (_restored(found, shape) for found in recorded) if flatten else recorded
    return _Run(
        program,
        shape,
        latents,
        log_latent,
        log_observed,
        capture.distributions,
        capture.action,
        policy,
        (obs if isinstance(obs, Tensor) else obs[0]).device,
    )


def _restored(values: dict[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Bring ``[K * B, ...]`` back to ``[K, B, ...]``."""
    return {name: value.unflatten(0, shape) if value.ndim else value for name, value in values.items()}


def _call(policy: LatentPolicy, program: str, capture: Capture, obs: Observations, action: Tensor | None) -> None:
    try:
        with capture:
            if program == "model":
                policy.model(obs, action)
            else:
                policy.guide(obs, action)
    except Reached:
        return
    except RuntimeError as error:
        text = str(error)
        if capture.num_particles is None or not any(word in text for word in ("size", "shape", "dimension")):
            raise
        raise ShapeError(
            f"{program}()",
            "the program failed on particles with a leading dimension K",
            expected=f"operations that broadcast [K={capture.num_particles}, B={capture.rows}, ...] against [B, ...]",
            got=text.splitlines()[0],
            likely="`obs` and a latent are joined without broadcasting, such as torch.cat([obs, z], -1)",
            fix="expand `obs` to the latent's shape first, or from_pyro(..., flatten_particles=True)",
        ) from error


def _check_first_steps(obs: Observations) -> None:
    """Refuse a mask that is not one truth a step, and a span without its first step, at which the latent is drawn."""
    if not isinstance(obs, Span):
        return
    if obs.mask.dtype != torch.bool or obs.mask.shape != obs.obs.shape[:2]:  # [B, 1] would broadcast without a word
        raise ShapeError(
            "programs",
            "`obs.mask`",
            expected=f"[B, T] = {list(obs.obs.shape[:2])}, torch.bool: one truth a step of `obs.obs`",
            got=f"{list(obs.mask.shape)}, {obs.mask.dtype}",
            fix="mask.bool() where only the type differs",
        )
    if not is_concrete():
        return
    empty = (~obs.mask[:, 0]).nonzero()
    if len(empty):
        raise ShapeError(
            "programs",
            "`obs.mask`",
            expected="true at every row's first step, at which its latent is drawn",
            got=f"false in row {int(empty[0])} ({len(empty)} such rows)",
            fix="shift each row's steps to the front, and drop rows without any",
        )


def check_rows(action: Tensor, rows: int) -> None:
    """Refuse actions ``[B, ...]`` that are not one a row."""
    if action.ndim == 0 or action.shape[0] != rows:
        raise ShapeError(
            "programs",
            f"`{ACTION}`",
            expected=f"[B={rows}, ...], one action a row of `obs`",
            got=str(list(action.shape)),
            fix="pass `obs` and `action` of the same transitions",
        )


def _check_sites(program: str, capture: Capture, values: Latents) -> None:
    visited, given = set(capture.latents), set(values)
    if visited == given:
        return
    raise SiteError(
        f"{program}()",
        "latent sites do not match the latents that were given",
        expected=f"latents for the sites of `{program}`: {sorted(visited)}",
        got=str(sorted(given)),
        likely="`model` and `guide` name their sites differently",
        fix="give each latent the same name in `model`, in `guide` and in what was recorded",
    )


def _check_action_site(capture: Capture, *, observed: bool) -> None:
    if ACTION not in capture.distributions:
        raise SiteError(
            "model()",
            f"the model has no site `{ACTION}`",
            expected=f'pyro.sample("{ACTION}", ..., obs=action)',
            got=f"sites {sorted([*capture.latents, *capture.log_observed])}",
            fix=f'name the site that the environment sees "{ACTION}"',
        )
    if observed and not capture.action_was_observed:
        raise SiteError(
            "model()",
            f"the site `{ACTION}` was drawn although an action was given",
            expected=f'pyro.sample("{ACTION}", ..., obs=action)',
            got=f'pyro.sample("{ACTION}", ...)',
            fix="pass obs=action; it is None when the policy acts",
        )


def _no_action(run: _Run) -> SiteError:
    return SiteError(run.program, f"no value at `{ACTION}`", expected="a drawn action", got=str(sorted(run.latents)))


def count_particles(latents: Latents) -> int:
    """Read K off the latents; a policy without any is its own single particle."""
    for value in latents.values():
        return value.shape[0]
    return 1
