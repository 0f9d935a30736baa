"""Markovian importance sampling: what its chain leaves invariant, and how fast it forgets where it began."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentpg.estimators import Guide, MarkovianIS, Mixture, Prior, Proposal
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import Latents, take_rows
from tests.examiner.expectations import EXACT, draw_recorded, log_proposal, model_gradient, off_by
from tests.examiner.models import Model, models

EXAMPLES = 13  # of sixteen models each: 208
PROPOSALS: dict[str, Proposal] = {"prior": Prior(), "guide": Guide(), "mixture": Mixture(0.25)}


def state_law(model: Model, estimator: MarkovianIS, start: Tensor | None) -> Tensor:
    """Give the law ``[B, C]`` of slot 0 after a proposal, from the state ``start``, or None for a posterior draw."""

    def program(row: Tensor) -> Latents:
        obs, action = take_rows(model.obs, row), model.action[row]
        state = draw_recorded(model, row) if start is None else model.latents(start[row], row)
        return {name: value[0] for name, value in estimator.propose(model.policy, obs, action, state).latents.items()}

    every = enumerate_draws(program, num_rows=model.rows)
    return every.expectation(is_point(model, every.result, every.row))


def is_point(model: Model, latents: Latents, row: Tensor) -> Tensor:
    """Tell which joint latent each row's value is, one-hot ``[N, C]``."""
    same = []
    for number in range(model.size):
        point = model.latents(torch.full_like(row, number), row)
        same.append(torch.stack([latents[name] == value for name, value in point.items()]).all(0))
    return torch.stack(same, -1).double()


@pytest.mark.parametrize(("name", "num_particles"), [("prior", 2), ("guide", 2), ("guide", 3), ("mixture", 2)])
@pytest.mark.parametrize("kind", ["step", "span", "two-site"])
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_one_sweep_leaves_the_posterior_as_it_is(kind: str, name: str, num_particles: int, data: st.DataObject) -> None:
    model = data.draw(models(kind, sizes=st.integers(2, 3)))
    estimator = MarkovianIS(num_particles, num_sweeps=1, proposal=PROPOSALS[name])
    if name == "mixture" or num_particles == 3:  # enough of one row's draws as they are
        model = Model(model.policy, model.moved, take_rows(model.obs, slice(0, 2)), model.action[:2])
    assert off_by(state_law(model, estimator, None), model.log_posterior().exp().T) < EXACT


@settings(max_examples=EXAMPLES)
@given(model=models("step", sizes=st.integers(2, 4)))
def test_from_any_state_the_chain_contracts_to_the_posterior(model: Model) -> None:
    """A sweep goes to y with probability at least (K - 1) E[w(y) / (w(x) + w(y) + ...)] r(y).

    With w = p(z|a) / r(z) at most W, Jensen puts that above (K - 1) / (2W + K - 2) p(y|a): a share of the posterior
    itself, so that the distance shrinks by at least one minus that share in each sweep.
    """
    posterior = model.log_posterior().exp().T.detach()
    largest = (posterior.T / log_proposal(model, "guide").exp()).amax(0)
    for num_particles in (2, 3):
        share = (num_particles - 1) / (2 * largest + num_particles - 2)
        estimator = MarkovianIS(num_particles, num_sweeps=1)
        starts = [torch.full((model.rows,), number) for number in range(model.size)]
        if num_particles == 3 and model.size == 4:
            continue  # 4^5 * 3 outcomes a row
        sweep = torch.stack([state_law(model, estimator, start) for start in starts], 1)  # [B, from, to]
        law = torch.eye(model.size, dtype=torch.float64).expand_as(sweep)
        distance = 0.5 * (law - posterior.unsqueeze(1)).abs().sum(-1)
        for sweeps in range(1, 6):
            law = law @ sweep
            shrunk = 0.5 * (law - posterior.unsqueeze(1)).abs().sum(-1)
            assert bool((shrunk <= (1 - share.unsqueeze(-1)) ** sweeps + EXACT).all())
            assert bool((shrunk <= distance + EXACT).all())
            distance = shrunk


@settings(max_examples=EXAMPLES)
@given(model=models("step", rows=8, sizes=st.just(2)))
def test_sweeps_compose_and_the_gradients_bias_dies_with_the_chains_memory(model: Model) -> None:
    starts = [torch.full((model.rows,), number) for number in range(2)]
    one = torch.stack([state_law(model, MarkovianIS(2, num_sweeps=1), start) for start in starts], 1)
    two = torch.stack([state_law(model, MarkovianIS(2, num_sweeps=2), start) for start in starts], 1)
    assert off_by(two, one @ one) < EXACT

    def expected_gradient(num_sweeps: int) -> Tensor:
        estimator = MarkovianIS(2, num_sweeps=num_sweeps)

        def program(row: Tensor) -> Tensor:
            obs, action = take_rows(model.obs, row), model.action[row]
            particles = estimator.propose(model.policy, obs, action)  # no state: the chain begins in the proposal
            return estimator.estimate(model.policy, obs, action, particles).log_prob

        every = enumerate_draws(program, num_rows=model.rows)
        return model_gradient(model, every.expectation(every.result))

    exact = model_gradient(model, model.log_pi())
    # the chain's law after n sweeps is posterior + (memory)^n (proposal - posterior): two values, one eigenvalue
    memory = one[:, 0, 0] - one[:, 1, 0]
    biases = [expected_gradient(sweeps) - exact for sweeps in range(3)]
    assert isinstance(model.policy, TabularLatentPolicy)
    per_row = (model.policy.prior_logits, model.policy.decoder_logits)
    shrink = torch.cat([memory.reshape(-1, *[1] * (table.ndim - 1)).expand_as(table).flatten() for table in per_row])
    assert off_by(biases[1], shrink * biases[0]) < EXACT
    assert off_by(biases[2], shrink**2 * biases[0]) < EXACT
