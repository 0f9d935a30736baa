"""The agent: its guard, the entropy of a marginal, the gap to fresh particles, and how the guide is taught."""

import copy
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.errors import OptionError, RecordedLatentError
from latentpg.estimators import ClosedForm, ConditionalIS, Estimate, Exact, Guide, Particles, PosteriorIS
from latentpg.estimators.guides import ConditionalWake, Recorded, Sleep, Wake
from latentpg.learners import Agent, AgentOptions, Rows, Scored
from latentpg.learners import agent as agent_module
from latentpg.numerics.rng import seeded
from latentpg.numerics.surrogates import ppo_clip
from latentpg.policies import MixturePolicy, PlainPolicy
from latentpg.programs import LatentPolicy, Latents, Observations, act, log_joint, model_parameters, score_prior
from latentpg.rollout import ObservationNormalizer

SEEN, ACTS = spaces.Box(-1, 1, (3,)), spaces.Discrete(3)


def mixture(size: int = 2, *, encoder: nn.Module | None = None) -> MixturePolicy:
    with seeded(2):
        return MixturePolicy(SEEN, ACTS, num_components=size, hidden=(4,), encoder=encoder).double()


def acted(policy: LatentPolicy, rows: int = 32) -> tuple[Rows, Tensor]:
    obs = torch.randn(rows, 3).double()
    done = act(policy, obs)
    return Rows(obs, done.action, done.latents), done.log_joint


def move(parameters: Any, by: float) -> None:  # noqa: ANN401
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by * torch.randn_like(parameter))


# the guard


@pytest.mark.parametrize("use", ["stored", "fresh"])
def test_rows_of_another_policy_are_refused(use: Any) -> None:  # noqa: ANN401
    policy = mixture()
    agent = Agent(policy, estimator=ConditionalIS(3), options=AgentOptions(particles=use))
    rows, recorded = acted(policy)
    agent.propose(rows, recorded)
    with pytest.raises(RecordedLatentError, match="rows out of order"):
        agent.propose(Rows(rows.obs, rows.action.roll(1), rows.latents), recorded)
    with pytest.raises(RecordedLatentError, match="no longer what it was"):
        agent.propose(rows, recorded.roll(1))
    move(policy.decoder_parameters(), 1e-3)
    with pytest.raises(RecordedLatentError, match="no longer what it was"):
        agent.propose(rows, recorded)


def test_a_normaliser_that_moved_is_refused() -> None:
    normalizer = ObservationNormalizer(3)
    policy = mixture(encoder=normalizer)
    agent = Agent(policy, estimator=ConditionalIS(3))
    rows, recorded = acted(policy)
    agent.propose(rows, recorded)
    assert isinstance(rows.obs, Tensor)
    normalizer.update(rows.obs)
    with pytest.raises(RecordedLatentError, match="the same parameters and buffers"):
        agent.propose(rows, recorded)


# entropy


def exact_entropy(policy: MixturePolicy, obs: Tensor) -> Tensor:
    log_pi = torch.stack([exact_log_pi(policy, obs, torch.full((len(obs),), a)) for a in range(3)])
    return -(log_pi.exp() * log_pi).sum(0)


def exact_log_pi(policy: MixturePolicy, obs: Tensor, action: Tensor) -> Tensor:
    return Exact().estimate(policy, obs, action, Exact().propose(policy, obs, action)).log_prob


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_the_entropy_rows_have_the_entropys_gradient(drift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Summed over all pairs of outcomes (a, z_0, z_1) of two rows, with K = 2 particles of ConditionalIS.

    The second particle comes from the behaviour's prior; the value is exact, so that nothing is left of the estimate's
    own O(1/K) bias. On-policy and after a drift, where the ratio weighs the rows.
    """
    monkeypatch.setattr(agent_module, "PosteriorIS", lambda num_particles: Exact())
    old = mixture()
    new = copy.deepcopy(old)
    move(model_parameters(new), drift)
    agent, estimator = Agent(new, estimator=ConditionalIS(2)), ConditionalIS(2)
    obs = torch.randn(1, 3).double().repeat(2, 1)
    log_prior = [score_prior(old, obs[:1], {"z": torch.full((1, 1), z)}).log_prob.item() for z in range(2)]
    outcomes = list(itertools.product(range(3), range(2), range(2)))
    chances = [
        math.exp(log_joint(old, obs[:1], torch.tensor([a]), {"z": torch.tensor([[kept]])}).item() + log_prior[fresh])
        for a, kept, fresh in outcomes
    ]
    assert sum(chances) == pytest.approx(1.0, abs=1e-12)
    parameters = model_parameters(new)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for (one, p), (two, q) in itertools.product(zip(outcomes, chances, strict=True), repeat=2):
        action = torch.tensor([one[0], two[0]])
        latents = torch.tensor([[one[1], two[1]], [one[2], two[2]]])
        log_proposal = torch.tensor([[log_prior[z] for z in slot] for slot in latents.tolist()], dtype=torch.float64)
        particles = Particles({"z": latents}, log_proposal, retained=True)
        with torch.no_grad():
            before = estimator.estimate(old, obs, action, particles).log_prob
        estimate = estimator.estimate(new, obs, action, particles)
        rows = agent.entropy(Scored(Rows(obs, action, {}), estimate.log_prob, before, estimate, particles))
        for sum_, part in zip(total, torch.autograd.grad(rows.mean(), parameters), strict=True):
            sum_ += p * q * part
    expected = torch.autograd.grad(exact_entropy(new, obs[:1]).sum(), parameters)
    assert max(float(part.abs().max()) for part in expected) > 1e-3
    torch.testing.assert_close(total, list(expected), rtol=1e-10, atol=1e-13)


def test_one_row_alone_has_an_entropy_gradient_too() -> None:
    """Its own value taken off as a baseline would leave nothing."""
    policy = mixture()
    agent = Agent(policy, estimator=Exact(), options=AgentOptions(entropy_coefficient=0.1))
    rows, recorded = acted(policy, 1)
    scored = agent.propose(rows, recorded).score(policy, torch.arange(1))
    gradient = torch.autograd.grad(agent.entropy(scored).mean(), model_parameters(policy))
    assert max(float(part.abs().max()) for part in gradient) > 1e-3


def test_a_closed_entropy_is_taken_where_there_is_one() -> None:
    policy = PlainPolicy(SEEN, ACTS, hidden=(4,)).double()
    agent = Agent(policy, estimator=ClosedForm())
    rows, recorded = acted(policy)
    scored = agent.propose(rows, recorded).score(policy, torch.arange(32))
    log_pi = policy.network(rows.obs).log_softmax(-1)
    torch.testing.assert_close(agent.entropy(scored), -(log_pi.exp() * log_pi).sum(-1))


# the gap


def gained(agent: Agent, rows: Rows, recorded: Tensor, *, steps: int) -> float:
    """Fit advantages of pure noise on stored particles, and return the gap."""
    assert isinstance(agent.policy, nn.Module)
    index, advantage = torch.arange(rows.size), torch.randn(rows.size).double()
    behaviour = copy.deepcopy(agent.policy)
    scorer = agent.propose(rows, recorded)

    def surrogate(ratio: Tensor, index: Tensor) -> Tensor:
        return ppo_clip(ratio, advantage[index], epsilon=0.2)

    for _ in range(steps):
        agent.model.step(-surrogate(scorer.score(agent.policy, index).log_ratio.exp(), index).mean())
    told = agent.gap(rows, behaviour, scorer, index, surrogate)
    assert set(told) == {"train/ratio_mean_fresh", "train/surrogate_gap"}
    return told["train/surrogate_gap"]


OVERFIT = AgentOptions(learning_rate=0.03, max_grad_norm=math.inf)


@pytest.mark.parametrize("kind", ["exact", "closed"])
def test_without_particles_there_is_no_gap(kind: str) -> None:
    policy = mixture() if kind == "exact" else PlainPolicy(SEEN, ACTS, hidden=(4,)).double()
    agent = Agent(policy, estimator=Exact() if kind == "exact" else ClosedForm(), options=OVERFIT)
    before = [p.detach().clone() for p in model_parameters(policy)]
    assert abs(gained(agent, *acted(policy), steps=10)) < 1e-12
    assert not all(torch.equal(a, b) for a, b in zip(before, model_parameters(policy), strict=True))


def test_fitting_the_particles_shows_in_the_gap() -> None:
    """Ten runs on pure noise at K = 2: the mean gap is positive by far more than its standard error."""
    gaps = []
    for _ in range(10):
        policy = mixture(4)
        gaps.append(gained(Agent(policy, estimator=ConditionalIS(2), options=OVERFIT), *acted(policy, 128), steps=10))
    found = torch.tensor(gaps)
    assert found.mean() > 5 * found.std() / math.sqrt(10)
    policy = mixture(4)
    none = gained(Agent(policy, estimator=ConditionalIS(2), options=OVERFIT), *acted(policy, 128), steps=0)
    assert none == 0.0  # every ratio is one, on any particles


def test_the_gaps_rows_are_spread_over_the_rollout() -> None:
    policy = mixture()
    agent = Agent(policy, estimator=Exact(), options=AgentOptions(gap_rows=5))
    rows, recorded = acted(policy, 32)
    seen: list[list[int]] = []

    def surrogate(ratio: Tensor, index: Tensor) -> Tensor:
        seen.append(index.tolist())
        return ratio

    agent.gap(rows, policy, agent.propose(rows, recorded), torch.arange(32), surrogate)
    assert seen == [[0, 7, 14, 21, 28]] * 2


# the guide


@dataclass
class Spy:
    """Notes what a guide objective is given, and passes it on to another."""

    inner: Any = field(default_factory=Recorded)
    given: list[Particles | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Tensor:
        self.given.append(particles)
        self.sizes.append(len(action))
        return self.inner.loss(policy, obs, action, particles=particles, latents=latents)


def guide_and_model(policy: MixturePolicy) -> tuple[list[Tensor], list[Tensor]]:
    return (
        [p.detach().clone() for p in policy.guide_parameters()],
        [p.detach().clone() for p in model_parameters(policy)],
    )


@pytest.mark.parametrize("use", ["stored", "fresh"])
@pytest.mark.parametrize("objective", [ConditionalWake(), Recorded(), Wake(4), Sleep()], ids=repr)
def test_teaching_moves_the_guide_alone(objective: Any, use: Any) -> None:  # noqa: ANN401
    policy = mixture()
    options = AgentOptions(particles=use, batch_size=8, guide_epochs=2)
    agent = Agent(policy, estimator=ConditionalIS(3, Guide()), objective=objective, options=options)
    rows, recorded = acted(policy)
    scorer = agent.propose(rows, recorded)
    psi, model = guide_and_model(policy)
    told = agent.teach_guide(scorer, rows, torch.arange(32))
    assert set(told) == {"train/guide_grad_norm", "train/guide_loss"} and told["train/guide_grad_norm"] > 0
    after = guide_and_model(policy)
    assert not any(torch.equal(a, b) for a, b in zip(psi, after[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model, after[1], strict=True))


def test_conditional_wake_weighs_its_rows_by_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = mixture()
    agent = Agent(policy, estimator=ConditionalIS(3), objective=ConditionalWake(), options=AgentOptions(batch_size=64))
    rows, recorded = acted(policy)
    scorer = agent.propose(rows, recorded)
    move(model_parameters(policy), 0.3)
    scored = scorer.score(policy, torch.arange(32))
    plain = ConditionalWake().loss(policy, rows.obs, rows.action, particles=scored.particles)
    expected = (scored.log_ratio.exp() * plain).mean().item()
    assert abs(expected - plain.mean().item()) > 1e-3
    assert agent.teach_guide(scorer, rows, torch.arange(32))["train/guide_loss"] == pytest.approx(expected, rel=1e-10)


def test_the_guide_sees_the_rows_that_count_once_an_epoch() -> None:
    policy, spy = mixture(), Spy()
    options = AgentOptions(batch_size=8, guide_epochs=3)
    agent = Agent(policy, estimator=Exact(), objective=spy, options=options)
    rows, recorded = acted(policy)
    agent.teach_guide(agent.propose(rows, recorded), rows, torch.arange(0, 32, 2))
    assert spy.sizes == [8] * 6 and spy.given == [None] * 6


def test_without_an_objective_the_guide_stays() -> None:
    policy = mixture()
    agent = Agent(policy, estimator=Exact())
    rows, recorded = acted(policy)
    assert agent.teach_guide(agent.propose(rows, recorded), rows, torch.arange(32)) == {}
    plain = PlainPolicy(SEEN, ACTS).double()
    taught = Agent(plain, estimator=ClosedForm(), objective=Wake(4))  # it has no guide
    rows, recorded = acted(plain)
    assert taught.teach_guide(taught.propose(rows, recorded), rows, torch.arange(32)) == {}


# rates, states and options


def test_annealing_sets_both_rates() -> None:
    def rates(*, anneal: bool, progress: float) -> list[float]:
        options = AgentOptions(learning_rate=0.4, guide_learning_rate=0.2, anneal=anneal)
        agent = Agent(mixture(), estimator=Exact(), objective=Recorded(), options=options)
        agent.anneal(progress)
        return [part.learning_rate for part in (agent.model, agent.guide)]

    assert rates(anneal=True, progress=0.75) == [0.1, 0.05]
    assert rates(anneal=True, progress=1.0) == [0.0, 0.0]
    assert rates(anneal=False, progress=0.75) == [0.4, 0.2]


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_is_a_share(progress: float) -> None:
    agent = Agent(mixture(), estimator=Exact())
    with pytest.raises(OptionError, match=r"`progress`\n  expected: a number in \[0, 1\]"):
        agent.anneal(progress)


BAD: list[tuple[str, Any, str]] = [
    *[(name, v, "a number > 0") for name in ("learning_rate", "guide_learning_rate", "max_grad_norm") for v in (0, -1)],
    *[(name, math.nan, "a number > 0") for name in ("learning_rate", "guide_learning_rate", "max_grad_norm")],
    ("learning_rate", math.inf, "a number > 0"),
    *[(name, 0, "an integer >= 1") for name in ("batch_size", "entropy_particles", "gap_rows")],
    *[(name, -1, "an integer >= 0") for name in ("guide_epochs", "gap_every")],
    ("batch_size", 2.0, "an integer >= 1"),
    ("guide_epochs", True, "an integer >= 0"),
    *[("entropy_coefficient", value, "a number >= 0") for value in (-0.1, math.inf, math.nan)],
    ("particles", "kept", "stored or fresh"),
]


@pytest.mark.production
@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_bad_options_are_refused(name: str, value: Any, expected: str) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=rf"AgentOptions\(\): `{name}`\n  expected: {expected}\n  got:      .*"):
        AgentOptions(**{name: value})


def test_no_limit_on_the_gradient_can_be_asked_for() -> None:
    assert AgentOptions(max_grad_norm=math.inf).max_grad_norm == math.inf


@pytest.mark.production
def test_a_policy_that_is_no_module_is_refused() -> None:
    class Bare:
        pass

    bare: Any = Bare()
    with pytest.raises(OptionError, match=r"`policy`\n  expected: an nn.Module\n  got:      Bare"):
        Agent(bare, estimator=PosteriorIS(2))


def test_a_state_is_gone_on_from() -> None:
    rows, _ = acted(mixture())

    def learn(agent: Agent) -> None:
        recorded = {"z": rows.latents["z"].unsqueeze(0)}
        scorer = agent.propose(rows, log_joint(agent.policy, rows.obs, rows.action, recorded)[0].detach())
        agent.model.step(-scorer.score(agent.policy, torch.arange(32)).log_prob.mean())
        with seeded(0):
            agent.teach_guide(scorer, rows, torch.arange(32))

    agent, other = (Agent(mixture(), estimator=Exact(), objective=Recorded()) for _ in range(2))
    learn(agent)
    state = agent.state()
    other.restore(state)
    learn(agent)
    learn(other)
    found, expected = other.state(), agent.state()
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(state[name], expected[name]) for name in state)


def test_what_an_estimate_says_of_itself_is_handed_on() -> None:
    policy = mixture()
    rows, recorded = acted(policy)
    scored = Agent(policy, estimator=ConditionalIS(3)).propose(rows, recorded).score(policy, torch.arange(4))
    assert isinstance(scored.estimate, Estimate) and scored.estimate.info["ess"].shape == (4,)
