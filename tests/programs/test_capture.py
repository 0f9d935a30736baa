"""The capturing messenger against Pyro's own ``trace`` with ``replay`` and ``condition``, and the shapes it refuses."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor

from latentpg.errors import ShapeError, SiteError
from latentpg.programs import (
    act,
    draw_guide,
    draw_prior,
    log_joint,
    score_guide,
    score_model,
    score_prior,
)
from tests.programs.reference import (
    CONTINUOUS,
    DISCRETE,
    EXTRAS,
    Plain,
    Recipe,
    Site,
    build,
    event_of,
    off_by,
    recipes,
    traced,
)
from tests.programs.reference import example as example_values

EXACT = 1e-12
MIXED = (Site("categorical", "rows"), Site("lean vector"), Site("bernoulli", "nothing"), Site("normal"))


def given_latents(recipe: Recipe) -> dict[str, Tensor]:
    return {
        f"z{i}": example_values(site.kind, replace(recipe, seed=recipe.seed + i), recipe.particles, recipe.rows)
        for i, site in enumerate(recipe.latents)
    }


def given_action(recipe: Recipe) -> Tensor:
    return example_values(recipe.action.kind, replace(recipe, seed=recipe.seed + 99), recipe.rows)


@settings(max_examples=150)
@given(recipe=recipes(), how=st.sampled_from(("replay", "condition")))
@example(Recipe(1, 3, 3, MIXED, EXTRAS, plate=True), "replay")
@example(Recipe(2, 3, 3, MIXED, EXTRAS, plate=False), "condition")
@example(Recipe(3, 2, 4, MIXED, EXTRAS, plate=True), "condition")
def test_scores_of_given_latents_are_those_of_trace(recipe: Recipe, how: str) -> None:
    """Prior, likelihood, joint and guide, for every row and particle; K = B and K != B."""
    model, guide = build(recipe), build(replace(recipe, seed=recipe.seed + 1), with_action=False)
    policy, obs = Plain(model, guide), recipe.observations()
    action, latents = given_action(recipe), given_latents(recipe)

    log_prior, log_likelihood = traced(model, obs, action, latents, how=how)
    scores = score_model(policy, obs, action, latents)
    assert off_by(scores.log_prior, log_prior) < EXACT
    assert off_by(scores.log_likelihood, log_likelihood) < EXACT
    assert off_by(log_joint(policy, obs, action, latents), log_prior + log_likelihood) < EXACT
    assert off_by(score_prior(policy, obs, latents).log_prob, log_prior) < EXACT
    log_guide = sum(traced(guide, obs, action, latents, how=how))
    assert isinstance(log_guide, Tensor)
    assert off_by(score_guide(policy, obs, action, latents).log_prob, log_guide) < EXACT


@settings(max_examples=100)
@given(recipe=recipes())
@example(Recipe(4, 3, 3, MIXED, EXTRAS, plate=True))
@example(Recipe(5, 2, 4, MIXED, EXTRAS, plate=False))
def test_drawn_latents_have_their_shape_and_the_density_that_trace_gives_them(recipe: Recipe) -> None:
    model, guide = build(recipe), build(replace(recipe, seed=recipe.seed + 1), with_action=False)
    policy, obs, action = Plain(model, guide), recipe.observations(), given_action(recipe)
    prior = draw_prior(policy, obs, num_particles=recipe.particles)
    proposal = draw_guide(policy, obs, action, num_particles=recipe.particles)
    for drawn, program in ((prior, model), (proposal, guide)):
        assert set(drawn.latents) == {f"z{i}" for i in range(len(recipe.latents))}
        for i, site in enumerate(recipe.latents):
            shape = (recipe.particles, recipe.rows, *event_of(site.kind))
            assert drawn.latents[f"z{i}"].shape == shape
        assert drawn.log_prob.shape == (recipe.particles, recipe.rows)
        if not drawn.latents:
            continue
        log_latent, log_rest = traced(program, obs, action, drawn.latents, how="replay")
        expected = log_latent if program is model else log_latent + log_rest
        assert off_by(drawn.log_prob, expected) < EXACT


@settings(max_examples=60)
@given(recipe=recipes())
def test_acting_records_the_log_joint_of_what_it_drew(recipe: Recipe) -> None:
    model = build(recipe)
    obs = recipe.observations()
    acted = act(Plain(model), obs)
    kept = {name: value.unsqueeze(0) for name, value in acted.latents.items()}
    log_prior, log_likelihood = traced(model, obs, acted.action, kept, how="replay")
    assert off_by(acted.log_joint, (log_prior + log_likelihood)[0]) < EXACT
    assert off_by(log_joint(Plain(model), obs, acted.action, kept)[0], acted.log_joint) < EXACT


@pytest.mark.parametrize("rows, particles", [(3, 3), (2, 4)])
def test_gradients_are_those_of_trace(rows: int, particles: int) -> None:
    recipe = Recipe(6, rows, particles, MIXED, EXTRAS, plate=True)
    model, action, latents = build(recipe), given_action(recipe), given_latents(recipe)
    obs = recipe.observations().requires_grad_()
    cotangent = recipe.numbers(particles, rows)
    ours = torch.autograd.grad((log_joint(Plain(model), obs, action, latents) * cotangent).sum(), obs)[0]
    log_joints = sum(traced(model, obs, action, latents, how="replay"))
    reference = torch.autograd.grad((log_joints * cotangent).sum(), obs)[0]
    assert off_by(ours, reference) < EXACT


@pytest.mark.parametrize("kind", [*CONTINUOUS, *DISCRETE])
@pytest.mark.parametrize("parameters", ["nothing", "rows", "depends"])
def test_every_kind_of_latent_by_itself(kind: str, parameters: str) -> None:
    recipe = Recipe(7, 3, 3, (Site("normal"), Site(kind, parameters)), action=Site(kind))
    model, obs, action, latents = build(recipe), recipe.observations(), given_action(recipe), given_latents(recipe)
    expected = sum(traced(model, obs, action, latents, how="condition"))
    assert isinstance(expected, Tensor)
    assert off_by(log_joint(Plain(model), obs, action, latents), expected) < EXACT


def test_the_stack_is_left_clean_when_a_program_raises() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        act(Plain(model), torch.zeros(2, 3))
    assert not poutine.runtime._PYRO_STACK


# ---------------------------------------------------------------------------------------------------- batch shapes


@pytest.mark.parametrize("rows, particles", [(3, 5), (4, 4), (1, 3), (3, 1), (1, 1)])
def test_standard_prior_without_a_plate_gives_each_row_and_particle_its_own_z(rows: int, particles: int) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("action", dist.Normal(z.sum(-1) + obs[:, 0], 1.0), obs=action)

    policy, obs = Plain(model), torch.zeros(rows, 3)
    assert len(act(policy, obs).latents["z"].unique(dim=0)) == rows
    drawn = draw_prior(policy, obs, num_particles=particles)
    assert drawn.latents["z"].shape == (particles, rows, 2)
    assert len(drawn.latents["z"].reshape(-1, 2).unique(dim=0)) == particles * rows
    # each [k, b] of the score is that row's and that particle's own: nothing is broadcast to [B, B]
    scores = log_joint(policy, obs, torch.zeros(rows), drawn.latents)
    expected = dist.Normal(0, 1).log_prob(drawn.latents["z"]).sum(-1) + dist.Normal(
        drawn.latents["z"].sum(-1), 1.0
    ).log_prob(torch.tensor(0.0))
    assert torch.allclose(scores, expected)


@pytest.mark.parametrize("particles", [3, 4, 5])
@pytest.mark.parametrize(
    "name, shape",
    [("one column", (4, 1)), ("an event", (4, 2)), ("rows of another batch", (5,)), ("particles", (7, 4))],
)
def test_latents_of_any_other_batch_shape_are_refused(particles: int, name: str, shape: tuple[int, ...]) -> None:
    """Whether K is B or not; ``[K, B]`` too, before any latent has brought K in."""
    shape = (particles, 4) if name == "particles" else shape

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(shape), 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    policy, obs = Plain(model, lambda obs, action: model(obs)), torch.zeros(4, 3)
    with pytest.raises(ShapeError, match="batch shape of site `z`"):
        draw_prior(policy, obs, num_particles=particles)
    with pytest.raises(ShapeError, match="batch shape of site `z`"):
        draw_guide(policy, obs, torch.zeros(4), num_particles=particles)
    with pytest.raises(ShapeError):
        log_joint(policy, obs, torch.zeros(4), {"z": torch.zeros(particles, 4)})


def test_two_latents_the_second_of_them_on_the_particles_of_the_first() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        first = pyro.sample("first", dist.Normal(obs[:, 0], 1.0))
        second = pyro.sample("second", dist.Normal(first, 1.0))
        pyro.sample("action", dist.Normal(first + second, 1.0), obs=action)

    for particles in (3, 4):
        drawn = draw_prior(Plain(model), torch.zeros(4, 3), num_particles=particles)
        assert drawn.distributions["first"].batch_shape == (4,)
        assert drawn.distributions["second"].batch_shape == (particles, 4)


@pytest.mark.parametrize("rows, particles", [(3, 5), (4, 4)])
def test_action_with_a_column_for_a_scalar_is_refused(rows: int, particles: int) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    latents = {"z": torch.zeros(particles, rows)}
    with pytest.raises(ShapeError, match=r"action\.squeeze\(-1\)"):
        log_joint(Plain(model), torch.zeros(rows, 3), torch.zeros(rows, 1), latents)
    assert log_joint(Plain(model), torch.zeros(rows, 3), torch.zeros(rows), latents).shape == (particles, rows)


@pytest.mark.parametrize("particles", [2, 3, 4])
def test_event_dimension_of_a_normal_that_was_not_summed(particles: int) -> None:
    """Three rows, actions of three coordinates: at K = 3 every dimension has the same size."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(z.unsqueeze(-1) + obs, 1.0), obs=action)

    with pytest.raises(ShapeError, match=r"to_event\(1\)"):
        log_joint(Plain(model), torch.zeros(3, 3), torch.zeros(3, 3), {"z": torch.zeros(particles, 3)})
    with pytest.raises(ShapeError, match=r"to_event\(1\)"):
        act(Plain(model), torch.zeros(3, 3))


def test_factor_of_a_wrong_shape_is_refused() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.factor("penalty", obs)
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(ShapeError, match="log-probability shape of site `penalty`"):
        log_joint(Plain(model), torch.zeros(4, 3), torch.zeros(4), {"z": torch.zeros(2, 4)})


# ---------------------------------------------------------------------------------------------------------- plates


@pytest.mark.parametrize("particles", [2, 3, 4])
def test_plate_where_the_particles_are_is_refused_at_every_k(particles: int) -> None:
    """At K = 3, the plate's size, its log-probability has the very shape [K, B]."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("part", dist.Normal(0.0, 1.0), obs=torch.zeros(3, obs.shape[0]))
            pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(ShapeError, match="plate `parts` at dimension -2"):
        log_joint(Plain(model), torch.zeros(4, 3), torch.zeros(4), {"z": torch.zeros(particles, 4)})


def test_sequential_plates_inside_the_plate_of_rows() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for i in pyro.plate("outer", 2):
                for j in pyro.plate(f"inner{i}", 2):
                    pyro.sample(f"part{i}{j}", dist.Normal(z, 1.0 + i + j), obs=obs[:, 1])
            pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    obs, action, latents = torch.randn(4, 3).double(), torch.randn(4).double(), {"z": torch.randn(3, 4).double()}
    expected = sum(traced(model, obs, action, latents, how="replay"))
    assert isinstance(expected, Tensor)
    assert off_by(log_joint(Plain(model), obs, action, latents), expected) < EXACT


def test_plate_that_subsamples_its_rows_is_refused() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0], subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(obs[index, 0], 1.0))
            pyro.sample("action", dist.Normal(z, 1.0), obs=None if action is None else action[index])

    with pytest.raises(SiteError, match="take minibatches outside the program"):
        act(Plain(model), torch.zeros(4, 3))


def test_plate_of_other_rows_is_refused() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(ShapeError, match="not the rows of `obs`"):
        draw_prior(Plain(model), torch.zeros(4, 3), num_particles=3)


# ------------------------------------------------------------------------------------------------- masked out sites


def test_sites_masked_out_by_their_distribution_are_drawn_and_count_for_nothing() -> None:
    """``.mask(False)`` is also how Pyro marks a reparameterised site; a stranger's own is no less a latent."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0).mask(False))
        pyro.sample("action", dist.Normal(z, 1.0).mask(False), obs=action)

    obs = torch.zeros(4, 3)
    acted = act(Plain(model), obs)
    assert acted.latents["z"].shape == acted.action.shape == (4,)
    assert torch.equal(acted.log_joint, torch.zeros(4))
    scores = score_model(Plain(model), obs, torch.zeros(4), {"z": torch.zeros(2, 4)})
    assert torch.equal(scores.log_prior + scores.log_likelihood, torch.zeros(2, 4))
