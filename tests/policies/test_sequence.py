"""Episode-long latents: guides that read a sequence, the prior matched to them, and acting with a held latent."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from latentpg.data import Demonstrations, episode_rows
from latentpg.errors import OptionError, ShapeError
from latentpg.policies import CodeLatent, EpisodePolicy, GaussianLatent
from latentpg.policies.heads import make_head
from latentpg.policies.priors import MixturePrior
from latentpg.policies.sequence import AttentionGuide, GRUGuide, make_reader
from latentpg.programs import Span, act, draw_guide, draw_prior, log_joint, score_guide, score_prior
from latentpg.rollout import act_holding, collect_episodes
from tests.policies.spans import ACTIONS, KINDS, LENGTHS, ROWS, SEEN, STEPS, make, some_span
from tests.programs.reference import off_by
from tests.rollout.scripted import scripted

EXACT = 1e-12

each_reader = pytest.mark.parametrize("how", KINDS["episode"])


def reader(how: str) -> AttentionGuide | GRUGuide:
    return make_reader(how, 3, make_head(ACTIONS["box"]).double(), (6, 4), 5, nn.Tanh).double()


@each_reader
def test_an_episode_is_read_alike_beside_others_and_alone(how: str) -> None:
    """A row cut to its own length gives what it gave in the padded batch."""
    guide, span, action = reader(how), some_span(), torch.randn(ROWS, STEPS, 2, dtype=torch.float64)
    together = guide(span, span.obs, action)
    for row, length in enumerate(LENGTHS):
        cut = slice(row, row + 1), slice(0, length)
        alone = guide(Span(span.obs[cut], span.mask[cut]), span.obs[cut], action[cut])
        assert off_by(alone[0], together[row]) < EXACT


@each_reader
def test_steps_are_left_out_wherever_they_stand(how: str) -> None:
    guide, obs, action = reader(how), torch.randn(1, 4, 3).double(), torch.randn(1, 4, 2).double()
    holes = Span(obs, torch.tensor([[True, False, True, True]]))
    kept = torch.tensor([0, 2, 3])
    rest = Span(obs[:, kept], torch.ones(1, 3, dtype=torch.bool))
    assert off_by(guide(holes, obs, action), guide(rest, obs[:, kept], action[:, kept])) < EXACT


def test_one_reader_sees_the_order_of_steps_and_the_other_does_not() -> None:
    obs, action, turned = torch.randn(1, 4, 3).double(), torch.randn(1, 4, 2).double(), torch.tensor([0, 3, 2, 1])
    whole = torch.ones(1, 4, dtype=torch.bool)
    changes = {}
    for how in KINDS["episode"]:
        guide = reader(how)
        there = guide(Span(obs, whole), obs, action)
        changes[how] = off_by(guide(Span(obs[:, turned], whole), obs[:, turned], action[:, turned]), there)
    assert changes["attention"] < EXACT and changes["gru"] > 1e-4


def test_attention_pooling_is_the_one_written_out() -> None:
    guide, span, action = (
        AttentionGuide(3, make_head(ACTIONS["box"]), (6, 4), 5, nn.Tanh, num_queries=2),
        some_span(),
        None,
    )
    guide = guide.double()
    action = torch.randn(ROWS, STEPS, 2, dtype=torch.float64)
    found = guide(span, span.obs, action)
    for row, length in enumerate(LENGTHS):
        hidden = torch.tanh(guide.steps(span.obs[row, :length], [action[row, :length]]))
        pooled = []
        for query in guide.queries.weight:
            weight = torch.stack([(query * h).sum().exp() for h in hidden])
            pooled.append((weight.unsqueeze(1) * hidden).sum(0) / weight.sum())
        assert off_by(guide.readout(torch.cat(pooled)), found[row]) < EXACT


@each_reader
def test_a_step_is_an_episode_of_one_step(how: str) -> None:
    policy, obs = make("episode", how), torch.randn(ROWS, 3, dtype=torch.float64)
    acted, latents = act(policy, obs), draw_prior(policy, obs, num_particles=4).latents
    span, inside = Span(obs.unsqueeze(1), torch.ones(ROWS, 1, dtype=torch.bool)), acted.action.unsqueeze(1)
    assert off_by(log_joint(policy, span, inside, latents), log_joint(policy, obs, acted.action, latents)) < EXACT
    of_step = score_guide(policy, obs, acted.action, latents).log_prob
    assert off_by(score_guide(policy, span, inside, latents).log_prob, of_step) < EXACT


# --------------------------------------------------------------------------------------------------------------- prior


def matched(rows: int = ROWS) -> tuple[EpisodePolicy, Span, torch.Tensor]:
    latent = GaussianLatent(2, "mixture", rows)
    policy = EpisodePolicy(SEEN, ACTIONS["box"], latent=latent, hidden=(6, 4)).double()
    span, action = some_span(), torch.randn(ROWS, STEPS, 2, dtype=torch.float64)
    with torch.no_grad():  # posteriors that differ
        list(policy.guide_net.readout.parameters())[-2].mul_(10)
    policy.match_prior(span, action)
    return policy, span, action


def test_a_matched_prior_is_the_aggregate_posterior() -> None:
    policy, span, action = matched()
    z = {"z": torch.randn(6, ROWS, 2, dtype=torch.float64)}
    q = draw_guide(policy, span, action, num_particles=1).distributions["z"]
    found = score_prior(policy, span, z).log_prob
    for row in range(ROWS):  # the same in every state
        each = [Independent(Normal(q.mean[e], q.stddev[e]), 1).log_prob(z["z"][:, row]).exp() for e in range(ROWS)]
        assert off_by((sum(each) / ROWS).log(), found[:, row]) < EXACT


def test_a_matched_prior_is_at_most_log_e_nats_from_each_posterior() -> None:
    """It is q_e / E or more everywhere, draw by draw and not only on average."""
    policy, span, action = matched()
    drawn = draw_guide(policy, span, action, num_particles=500)
    log_ratio = drawn.log_prob - score_prior(policy, span, drawn.latents).log_prob
    assert bool((log_ratio <= math.log(ROWS) + EXACT).all())
    assert float(log_ratio.detach().max()) > 0.0


def test_no_other_mixture_has_a_larger_bound() -> None:
    """The mean of E_q[log p(z)] over episodes falls for whatever the placed parameters are moved to."""
    policy, span, action = matched()
    prior = policy.prior
    assert isinstance(prior, MixturePrior)
    with torch.no_grad():
        drawn = draw_guide(policy, span, action, num_particles=20_000)
        best = score_prior(policy, span, drawn.latents).log_prob
        for parameter in (prior.loc, prior.log_scale, list(prior.weights.parameters())[-1]):
            for step in (0.3, -0.3):
                kept = parameter.clone()
                parameter[0] += step
                change = (score_prior(policy, span, drawn.latents).log_prob - best).mean(1)
                assert float(change.mean()) < -4 * float(change.std()) / len(change) ** 0.5
                parameter.copy_(kept)


@pytest.mark.production
def test_a_prior_that_cannot_be_the_mixture_is_not_matched() -> None:
    span, action = some_span(), torch.randn(ROWS, STEPS, 2, dtype=torch.float64)
    for latent in (GaussianLatent(2, "mixture", ROWS + 1), GaussianLatent(2, "learned"), CodeLatent(ROWS)):
        policy = EpisodePolicy(SEEN, ACTIONS["box"], latent=latent, hidden=(4,)).double()
        with pytest.raises(OptionError, match=r"components as rows were given, 3[\s\S]*num_components=3"):
            policy.match_prior(span, action)


# -------------------------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("latent", ["standard", "mixture", "codes"])
def test_a_latent_is_drawn_once_an_episode_and_its_row_scores_as_recorded(latent: str) -> None:
    policy = make("episode", "attention", latent, "discrete").float()
    episodes = collect_episodes(scripted(3), policy, num_episodes=7, seed=0, latent="episode")
    rows = episodes.spans()
    z, first = episodes.transitions.latents["z"], rows.latents["z"]
    assert torch.equal(z, first[episodes.episode])
    assert len(first.unique(dim=0)) > 1
    assert rows.obs.obs.shape[:2] == (7, int(episodes.lengths.max()))
    again = log_joint(policy, rows.obs, rows.action, {"z": first.unsqueeze(0)})[0]
    torch.testing.assert_close(again.detach(), rows.log_joint, atol=1e-5, rtol=1e-5)


def test_members_that_do_not_begin_keep_their_latent() -> None:
    policy, obs = make("episode", "gru", "mixture"), torch.randn(4, 3, dtype=torch.float64)
    held = act_holding(policy, obs, None, torch.ones(4, dtype=torch.bool)).latents
    begins = torch.tensor([True, False, False, True])
    after = act_holding(policy, obs + 1.0, held, begins).latents["z"]
    assert ((after == held["z"]).all(1) == ~begins).all()


def test_standard_deviations_begin_where_they_are_told_to() -> None:
    policy = EpisodePolicy(SEEN, ACTIONS["box"], initial_log_std=-1.5)
    assert torch.equal(policy.decoder.head.log_std, torch.full((2,), -1.5))  # type: ignore[arg-type]


def test_a_few_steps_of_learning_tell_two_ways_apart() -> None:
    """Two demonstrations from one state, one to the left and one to the right: each code takes one of them."""
    steps = torch.full((5, 1), 1.0)
    obs = torch.zeros(5, 3)
    demonstrations = Demonstrations.from_episodes([obs, obs], [torch.cat([s * steps, 0 * steps], 1) for s in (1, -1)])
    rows = episode_rows(demonstrations)
    policy = EpisodePolicy(SEEN, ACTIONS["box"], latent=CodeLatent(2), hidden=(8,))
    parameters = policy.decoder_parameters()
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    codes = {"z": torch.arange(2).unsqueeze(1).expand(2, 2)}
    for _ in range(60):
        loss = -log_joint(policy, rows.obs, rows.action, codes).logsumexp(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    posterior = log_joint(policy, rows.obs, rows.action, codes).softmax(0).detach()
    assert posterior.argmax(0).tolist() in ([0, 1], [1, 0]) and float(posterior.max(0).values.min()) > 0.99


@pytest.mark.production
def test_actions_of_another_shape_are_refused() -> None:
    policy, span = make("episode", "attention"), some_span()
    z = draw_prior(policy, span, num_particles=1).latents
    with pytest.raises(ShapeError, match=r"one action a step of `obs`: \[3, 4, 2\]"):
        score_guide(policy, span, torch.zeros(ROWS, 2, dtype=torch.float64), z)
    with pytest.raises(OptionError, match="`num_queries`"):
        AttentionGuide(3, make_head(ACTIONS["box"]), (4,), 2, nn.Tanh, num_queries=0)


@each_reader
def test_a_guide_begins_as_narrow_as_asked(how: str) -> None:
    """The read-out's biases decide: what its weights add differs from episode to episode, and 0 would be the mean."""
    reader_name: Any = how
    policy = EpisodePolicy(
        SEEN, ACTIONS["box"], latent=GaussianLatent(3), reader=reader_name, hidden=(6, 4), initial_guide_log_std=-2
    )
    last = policy.guide_net.readout.layers[-1]
    assert isinstance(last, nn.Linear)
    assert last.bias[3:].tolist() == [-2.0] * 3 and -2.0 not in last.bias[:3].tolist()
    with torch.no_grad():
        last.weight.zero_()
        q = draw_guide(policy, torch.zeros(2, 3), torch.zeros(2, 2), num_particles=1).distributions["z"]
    assert float((q.variance.sqrt() - math.exp(-2)).abs().max()) < 1e-6


@pytest.mark.production
def test_codes_have_no_width_to_begin_with() -> None:
    with pytest.raises(OptionError, match="`initial_guide_log_std` of a guide that has none"):
        EpisodePolicy(SEEN, ACTIONS["box"], latent=CodeLatent(3), initial_guide_log_std=-2)
