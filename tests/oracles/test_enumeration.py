"""The oracle itself: probabilities that sum to one, expectations known by heart, refusals."""

import math

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError, SiteError
from latentpg.oracles.enumeration import enumerate_draws, multisets, num_atoms, tuples
from latentpg.programs import Categorical, DiagNormal, MultiCategorical, draw, repeat_rows


def coin(rows: int, *, heads: float = 0.25) -> Categorical:
    return Categorical(torch.tensor([[1 - heads, heads]], dtype=torch.float64).log().expand(rows, 2))


def test_tuples_are_all_and_weigh_one() -> None:
    slots = [torch.tensor(p, dtype=torch.float64).log() for p in ([0.5, 0.25, 0.25], [0.1, 0.2, 0.7])]
    every = tuples(slots)
    assert every.index.shape == (2, 9) and len(set(map(tuple, every.index.T.tolist()))) == 9
    assert float(every.log_prob.exp().sum()) == pytest.approx(1, abs=1e-15)
    first, second = every.index[:, 5].tolist()
    assert float(every.log_prob[5]) == pytest.approx(float(slots[0][first] + slots[1][second]))


def test_tuples_take_rows_along_and_a_gradient() -> None:
    logits = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)  # C = 2, B = 4
    every = tuples([logits.log_softmax(0)] * 3)
    assert every.log_prob.shape == (8, 4) and every.log_prob.requires_grad


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_multisets_gather_tuples(num_values: int, num_particles: int, seed: int) -> None:
    """The law of the counts is that of the tuples with those counts."""
    log_prob = torch.randn(num_values, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_prob = log_prob.log_softmax(0)
    every, ordered = multisets(num_values, num_particles), tuples([log_prob] * num_particles)
    assert len(every.counts) == math.comb(num_particles + num_values - 1, num_particles)
    chance = every.log_prob(log_prob).exp()
    gathered: dict[tuple[int, ...], Tensor] = {}
    for place, one in enumerate(ordered.index.T):
        key = tuple(torch.bincount(one, minlength=num_values).tolist())
        gathered[key] = gathered.get(key, torch.zeros(2)) + ordered.log_prob[place].exp()
    for counts, weight in zip(every.counts.tolist(), chance, strict=True):
        assert torch.allclose(weight, gathered.pop(tuple(counts)), atol=1e-13)
    assert not gathered


def test_multisets_number_what_the_design_says() -> None:
    assert len(multisets(4, 64).counts) == 47_905
    with pytest.raises(OptionError, match="multisets"):
        multisets(3, 0)


def test_draws_with_particles_rows_and_dependence() -> None:
    """P(second = 1) where the second coin is fair after tails and two-headed after heads, for three rows at once."""

    def program(row: Tensor) -> Tensor:
        first = draw("first", coin(len(row)), (2,))
        both = torch.stack([torch.full_like(first, 0), first], -1).double()
        second = draw("second", Categorical(torch.where(first.unsqueeze(-1) == 1, both * 1000, 0.0 * both)))
        assert first.shape == second.shape == (2, len(row))
        return second.double().mean(0) * (row + 1)

    every = enumerate_draws(program, num_rows=3)
    assert len(every.row) == 16 * 3
    assert torch.allclose(every.expectation(every.result), 0.625 * torch.tensor([1.0, 2.0, 3.0]).double(), atol=1e-14)


def test_rows_that_are_repeated_for_particles_are_kept_apart() -> None:
    """A program that runs K * B rows draws [K * B], particles outermost."""

    def program(row: Tensor) -> Tensor:
        chance = torch.tensor([0.25, 0.5], dtype=torch.float64)[repeat_rows(row, 3)]
        flips = draw("flat", dist.Bernoulli(chance)).reshape(3, -1)
        return flips.prod(0)

    every = enumerate_draws(program, num_rows=2)
    assert torch.allclose(every.expectation(every.result), torch.tensor([1 / 64, 1 / 8]).double(), atol=1e-15)


def test_a_batchless_draw_is_a_draw_a_row() -> None:
    every = enumerate_draws(lambda row: draw("z", dist.Bernoulli(torch.tensor(0.25)), (2, len(row))), num_rows=2)
    assert torch.allclose(every.expectation(every.result[0]), torch.tensor([0.25, 0.25]).double())
    assert len(every.row) == 8


def test_vectors_of_discrete_coordinates() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0], dtype=torch.float64)

    def pair(row: Tensor) -> Tensor:
        return draw("pair", MultiCategorical(logits.expand(len(row), 5), (2, 3))).double()

    every = enumerate_draws(pair, num_rows=2)
    expected = torch.stack([logits[:2].softmax(-1)[1], logits[2:].softmax(-1) @ torch.tensor([0.0, 1.0, 2.0]).double()])
    assert torch.allclose(every.expectation(every.result), expected.expand(2, 2), atol=1e-14)

    bits = enumerate_draws(lambda row: draw("bits", dist.Bernoulli(torch.full((len(row), 3), 0.25)).to_event(1)))
    assert len(bits.row) == 8
    assert torch.allclose(bits.expectation(bits.result), torch.full((1, 3), 0.25).double())


def test_masked_steps_are_drawn_by_their_law_and_not_by_their_score() -> None:
    def steps(row: Tensor) -> Tensor:
        fn = dist.Categorical(torch.tensor([0.25, 0.75]).expand(len(row), 2, 2))
        return draw("action", fn.mask(torch.tensor([True, False])).to_event(1)).double()

    every = enumerate_draws(steps)
    assert torch.allclose(every.expectation(every.result), torch.full((1, 2), 0.75).double())


@pytest.mark.parametrize("event", [True, False])
def test_gaussian_draws_have_the_moments_of_their_nodes(event: bool) -> None:
    loc = torch.tensor([0.5, -1.0], dtype=torch.float64)
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64)

    def program(row: Tensor) -> Tensor:
        if event:
            return draw("z", DiagNormal(loc.expand(len(row), 2), scale.log()), (3,))[1]
        return draw("z", dist.Normal(loc[row], scale[row]))

    every = enumerate_draws(program, num_rows=1 if event else 2, num_nodes=4)
    mean = every.expectation(every.result)
    square = every.expectation(every.result**2) - mean**2
    fourth = every.expectation((every.result - mean[every.row]) ** 4)
    assert torch.allclose(mean.squeeze(), loc, atol=1e-13)
    assert torch.allclose(square.squeeze(), scale**2, atol=1e-12)
    assert torch.allclose(fourth.squeeze(), 3 * scale**4, atol=1e-11)
    assert len(every.row) == (4 ** (2 * 3) if event else 2 * 4)


def test_pathwise_draws_are_differentiable_and_others_are_not() -> None:
    loc = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def program(row: Tensor) -> tuple[Tensor, Tensor]:
        fn = dist.Normal(loc.expand(len(row)), 1.0)
        return draw("path", fn, pathwise=True), draw("value", fn)

    every = enumerate_draws(program, num_nodes=2)
    path, value = every.result
    assert path.requires_grad and not value.requires_grad and not every.log_prob.requires_grad


def test_a_choice_of_probability_zero_weighs_nothing() -> None:
    never = Categorical(torch.tensor([[0.0, -torch.inf]], dtype=torch.float64))
    every = enumerate_draws(lambda row: draw("z", never.expand(torch.Size([len(row)]))).double())
    assert every.log_prob.tolist() == [0.0, -math.inf]
    assert every.expectation(every.result).tolist() == [0.0]


def test_what_depends_on_earlier_values_is_refused() -> None:
    def program(row: Tensor) -> Tensor:
        first = draw("first", coin(len(row)))
        return draw("second", coin(len(row)), (1 + int(first.max()),))

    with pytest.raises(EstimatorError, match=r"not the same on every outcome"):
        enumerate_draws(program)


def test_fewer_draws_than_at_first_are_refused() -> None:
    def program(row: Tensor) -> Tensor:
        first = draw("first", coin(len(row)))
        return first if bool(first.any()) else draw("second", coin(len(row)))

    with pytest.raises(EstimatorError, match=r"not the same on every outcome"):
        enumerate_draws(program)


def test_a_draw_that_rows_share_is_refused() -> None:
    with pytest.raises(EstimatorError, match="shared by all rows"):
        enumerate_draws(lambda row: draw("shared", coin(1)).expand(len(row)), num_rows=2)
    with pytest.raises(EstimatorError, match="shared by all rows"):
        enumerate_draws(lambda row: draw("shared", coin(1)).expand(len(row)), num_rows=1)


def test_what_has_no_atoms_is_refused() -> None:
    with pytest.raises(SiteError, match="neither a finite support nor"):
        num_atoms("z", dist.Beta(torch.ones(2), torch.ones(2)), 4)


def test_too_many_outcomes_are_refused_before_they_are_run() -> None:
    runs = []

    def program(row: Tensor) -> Tensor:
        runs.append(len(row))
        return draw("z", coin(len(row)), (10,))

    with pytest.raises(OptionError, match="too many outcomes"):
        enumerate_draws(program, num_rows=3, max_outcomes=3000)
    assert runs == [3]


def test_randomness_that_does_not_pass_through_draw_is_not_seen_to_be_random() -> None:
    """Nothing can be done about it here; ``tests/programs/test_draws.py`` holds that the library has none."""
    every = enumerate_draws(lambda row: torch.rand(len(row)))
    assert len(every.row) == 1
