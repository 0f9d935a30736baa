"""Chunk policies: H actions from one observation and one latent, of which some are executed."""

import itertools

import pytest
import torch
from torch import nn

from latentpg.data import Demonstrations, chunk_rows
from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import Exact
from latentpg.policies import ChunkPolicy, CodeLatent
from latentpg.policies.decoders import MLPChunkDecoder, TransformerChunkDecoder
from latentpg.programs import Span, act, draw_prior, log_joint, score_guide, score_model
from tests.policies.spans import ACTIONS, KINDS, LENGTHS, ROWS, SEEN, STEPS, make, some_span
from tests.programs.reference import off_by

EXACT = 1e-12

each_decoder = pytest.mark.parametrize("how", KINDS["chunk"])
each_action = pytest.mark.parametrize("actions", ACTIONS)


@each_action
@each_decoder
def test_a_plain_row_is_a_chunk_that_was_all_executed(how: str, actions: str) -> None:
    policy, obs = make("chunk", how, "codes", actions), torch.randn(ROWS, 3, dtype=torch.float64)
    acted = act(policy, obs)
    assert acted.action.shape[:2] == (ROWS, STEPS)
    span = Span(obs.unsqueeze(1).expand(-1, STEPS, -1), torch.ones(ROWS, STEPS, dtype=torch.bool))
    latents = draw_prior(policy, obs, num_particles=2).latents
    assert off_by(log_joint(policy, span, acted.action, latents), log_joint(policy, obs, acted.action, latents)) < EXACT
    guided = score_guide(policy, obs, acted.action, latents).log_prob
    assert off_by(score_guide(policy, span, acted.action, latents).log_prob, guided) < EXACT


@each_decoder
def test_only_the_observation_of_the_decision_is_looked_at(how: str) -> None:
    policy, span = make("chunk", how), some_span()
    action = act(policy, span).action
    later = Span(span.obs.clone(), span.mask)
    later.obs[:, 1:] += 1.0
    latents = draw_prior(policy, span, num_particles=2).latents
    for score in (log_joint, lambda *given: score_guide(*given).log_prob):
        assert torch.equal(score(policy, later, action, latents), score(policy, span, action, latents))
    later.obs[:, 0] += 1.0
    assert not torch.equal(log_joint(policy, later, action, latents), log_joint(policy, span, action, latents))


@each_decoder
def test_leaving_out_actions_that_were_not_executed_sums_over_them(how: str) -> None:
    """With two discrete actions a chunk, p(a_1|s) is the sum of p(a_1, a_2|s) over a_2, codes summed out."""
    space = ACTIONS["discrete"]
    policy = ChunkPolicy(SEEN, space, horizon=2, latent=CodeLatent(3), hidden=(6, 4), num_heads=2)
    policy = policy.double()
    obs, exact = torch.randn(1, 2, 3, dtype=torch.float64), Exact()

    def probability(first: int, second: int, executed: int) -> float:
        span, action = Span(obs, torch.arange(2).unsqueeze(0) < executed), torch.tensor([[first, second]])
        with torch.no_grad():
            return float(exact.estimate(policy, span, action, exact.propose(policy, span, action)).log_prob.exp())

    for first in range(4):
        together = sum(probability(first, second, 2) for second in range(4))
        assert abs(together - probability(first, 0, 1)) < EXACT
    assert abs(sum(probability(a, b, 2) for a, b in itertools.product(range(4), repeat=2)) - 1) < EXACT


@each_decoder
def test_the_steps_of_a_chunk_are_independent_given_its_latent(how: str) -> None:
    policy, span = make("chunk", how), some_span()
    whole = Span(span.obs, torch.ones_like(span.mask))
    action, latents = act(policy, whole).action, draw_prior(policy, whole, num_particles=2).latents
    parts = []
    for step in range(STEPS):
        mask = torch.arange(STEPS).expand(ROWS, -1) <= step
        parts.append(score_model(policy, Span(span.obs, mask), action, latents).log_likelihood)
    single = [parts[0], *(after - before for before, after in itertools.pairwise(parts))]
    moved = action.clone()
    moved[:, 1] += 1.0
    mask = torch.arange(STEPS).expand(ROWS, -1) != 1
    first = score_model(policy, Span(span.obs, mask), moved, latents).log_likelihood
    assert off_by(first + single[1], parts[-1]) < EXACT


def test_rows_cut_from_demonstrations_are_scored_by_what_was_executed() -> None:
    obs = [torch.randn(length, 3) for length in (7, 5)]
    demonstrations = Demonstrations.from_episodes(obs, [torch.randn(len(o), 2) for o in obs])
    policy = ChunkPolicy(SEEN, ACTIONS["box"], horizon=STEPS, latent=CodeLatent(3), hidden=(6,))
    rows, exact = chunk_rows(demonstrations, horizon=STEPS, execute=2), Exact()
    with torch.no_grad():
        found = exact.estimate(policy, rows.scored, rows.action, exact.propose(policy, rows.scored, rows.action))
    assert found.log_prob.shape == (7,) and rows.executed.sum() == 12
    first = Span(rows.obs.obs[:1], torch.tensor([[True, True, False, False]]))
    logits = policy.prior(rows.obs.first[:1]).logits[0]
    z = {"z": torch.arange(3).unsqueeze(1)}
    likelihood = score_model(policy, first, rows.action[:1], z).log_likelihood[:, 0]
    by_hand = (logits.log_softmax(-1) + likelihood).logsumexp(0)
    assert abs(float((by_hand - found.log_prob[0]).detach())) < 1e-5


def test_a_guide_reads_zeros_and_a_mark_where_nothing_was_executed() -> None:
    policy, span = make("chunk", "mlp"), some_span()
    action = act(policy, span).action
    found = policy.guide_net(span, span.first, action)
    for row, length in enumerate(LENGTHS):
        steps = [[*action[row, i].tolist(), 1.0] if i < length else [0.0, 0.0, 0.0] for i in range(STEPS)]
        read = torch.tensor(steps, dtype=torch.float64).flatten()
        assert isinstance(policy, ChunkPolicy)
        assert off_by(policy.guide_net.network(span.obs[row, 0], [read]), found[row]) < EXACT


# ------------------------------------------------------------------------------------------------------------ decoders


def test_a_transformers_steps_see_each_other_and_the_latent() -> None:
    decoder = TransformerChunkDecoder(3, [2], 4, 1, width=8, num_layers=2, num_heads=2).double()
    features, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        found = decoder(features, [z])
        assert found.shape == (7, 5, 4, 1)
        one = decoder(features[2:3], [z[6, 2:3]])  # a row by itself: no row and no particle sees another
        assert off_by(one[0], found[6, 2]) < EXACT
        query = decoder.queries.clone()
        decoder.queries[3] += torch.randn(8)  # not a constant, which the normalisation takes out
        moved = (decoder(features, [z]) - found).abs().amin((0, 1, 3))
        assert bool((moved > 0).all())
        decoder.queries.copy_(query)
        assert bool(((decoder(features, [z + 1.0]) - found).abs() > 0).all())


def test_decoders_run_under_vmap() -> None:
    """Replicates of an estimator are taken by ``torch.func``: the decoders may not look at values."""
    mlp = MLPChunkDecoder(3, [2], 4, 1, (8,))
    transformer = TransformerChunkDecoder(3, [2], 4, 1, width=8, num_heads=2)
    features, z = torch.randn(5, 3), torch.randn(6, 7, 5, 2)
    for decoder in (mlp, transformer):
        together = torch.func.vmap(lambda one, d=decoder: d(features, [one]))(z)
        torch.testing.assert_close(together, torch.stack([decoder(features, [one]) for one in z]))


def test_a_transformer_has_no_dropout_and_no_causal_mask() -> None:
    policy = make("chunk", "transformer")
    assert not any(isinstance(part, nn.Dropout) for part in policy.modules())
    assert sum("norms" in name for name, _ in policy.named_parameters()) == 6


def test_standard_deviations_begin_where_they_are_told_to() -> None:
    policy = ChunkPolicy(SEEN, ACTIONS["box"], initial_log_std=-1.5)
    assert bool((next(policy.head.parameters()) == -1.5).all())
    ChunkPolicy(SEEN, ACTIONS["discrete"], initial_log_std=-1.5)  # a head without any is left alone


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.production
def test_a_span_of_another_length_is_refused() -> None:
    policy, span = make("chunk", "mlp"), some_span()
    shorter = Span(span.obs[:, :3], span.mask[:, :3])
    with pytest.raises(ShapeError, match=r"\[B, H=4, S\][\s\S]*chunk_rows\(demonstrations, horizon=4\)"):
        act(policy, shorter)


@pytest.mark.production
def test_an_action_that_is_no_chunk_is_refused() -> None:
    policy, span = make("chunk", "mlp"), some_span()
    z = draw_prior(policy, span, num_particles=1).latents
    step = torch.zeros(ROWS, 2, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"\[B, H, \.\.\.\] = \[3, 4, 2\]"):
        score_guide(policy, span, step, z)
    with pytest.raises(ShapeError, match=r"\[3, 4, 2\]"):
        log_joint(policy, span.first, step, z)


@pytest.mark.production
def test_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(OptionError, match="`horizon`"):
        ChunkPolicy(SEEN, ACTIONS["box"], horizon=0)
    with pytest.raises(OptionError, match="a multiple of 3"):
        TransformerChunkDecoder(3, [2], 4, 1, width=8, num_heads=3)
    with pytest.raises(OptionError, match="`num_layers`"):
        TransformerChunkDecoder(3, [2], 4, 1, num_layers=0)
