"""The ready-made policies: every kind, on every action space, on step rows and on spans."""

import copy
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError, SupportError
from latentpg.estimators import Exact, PosteriorIS, Prior
from latentpg.estimators.guides import ELBOGuide, Recorded
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.policies.common import Trunk
from latentpg.programs import (
    LatentPolicy,
    Latents,
    Observations,
    Span,
    act,
    draw_guide,
    draw_prior,
    log_joint,
    model_parameters,
    score_guide,
    score_model,
    score_prior,
)
from tests.policies.ready_made import (
    ACTIONS,
    KINDS,
    LATENTS,
    ROWS,
    SEEN,
    STEPS,
    ReadyMade,
    actions_for,
    make,
    observations,
    some_actions,
    sum_of,
    trace_each_row,
)
from tests.programs.reference import off_by

EXACT = 1e-12

each_kind = pytest.mark.parametrize("kind", KINDS)
each_action = pytest.mark.parametrize("actions", ACTIONS)
each_row = pytest.mark.parametrize("rows", ["step", "span"])

EVENTS = {"discrete": (), "multi-discrete": (2,), "multi-binary": (3,), "box": (2,)}


def gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(value.sum(), list(parameters), allow_unused=True, retain_graph=True))


def dead(policy: nn.Module, parameters: Sequence[nn.Parameter], found: Sequence[Tensor | None]) -> list[str]:
    """Name the parameters that got no gradient, or one of zeros."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    return [
        names[id(parameter)]
        for parameter, gradient in zip(parameters, found, strict=True)
        if gradient is None or not bool((gradient != 0).any())
    ]


# ---------------------------------------------------------------------------------------------------- acting, scoring


@each_row
@each_action
@each_kind
def test_shapes_and_dtypes_of_what_acting_leaves(kind: str, actions: str, rows: str) -> None:
    policy, obs = make(kind, actions), observations(rows)
    acted = act(policy, obs)
    lead = (ROWS,) if rows == "step" else (ROWS, STEPS)
    assert acted.action.shape == (*lead, *EVENTS[actions])
    assert acted.action.dtype == (torch.int64 if "discrete" in actions else torch.float64)
    assert {name: tuple(value.shape) for name, value in acted.latents.items()} == {
        name: (ROWS, *shape) for name, shape in LATENTS[kind].items()
    }
    for name, value in acted.latents.items():
        assert value.dtype == (torch.float64 if LATENTS[kind][name] else torch.int64), name
    assert acted.log_joint.shape == (ROWS,) and acted.log_joint.dtype == torch.float64
    assert isinstance(policy, LatentPolicy)


@pytest.mark.parametrize("particles", [2, ROWS])
@each_row
@each_action
@each_kind
def test_scores_are_those_of_pyros_own_trace_of_each_row(kind: str, actions: str, rows: str, particles: int) -> None:
    """At K = B (and T), where a particle taken for a row would not be told by its shape, as well as at K != B."""
    policy, obs = make(kind, actions), observations(rows)
    action = act(policy, obs).action
    latents = draw_prior(policy, obs, num_particles=particles).latents
    wanted = trace_each_row(policy.model, obs, action, latents)
    assert set(wanted) == {*LATENTS[kind], "action"}
    scores = score_model(policy, obs, action, latents)
    assert off_by(scores.log_likelihood, wanted["action"]) < EXACT
    assert off_by(scores.log_prior, sum_of({name: wanted[name] for name in LATENTS[kind]})) < EXACT
    assert off_by(log_joint(policy, obs, action, latents), sum_of(wanted)) < EXACT
    prior = score_prior(policy, obs, latents)
    for name in LATENTS[kind]:
        assert off_by(prior.log_prob_by_site[name].expand(particles, ROWS), wanted[name]) < EXACT, name

    guided = trace_each_row(policy.guide, obs, action, latents)
    assert set(guided) == set(LATENTS[kind])
    assert off_by(score_guide(policy, obs, action, latents).log_prob, sum_of(guided)) < EXACT


@each_row
@each_action
@each_kind
def test_the_guide_draws_the_models_sites_and_covers_them(kind: str, actions: str, rows: str) -> None:
    policy, obs = make(kind, actions), observations(rows)
    action = act(policy, obs).action
    prior = draw_prior(policy, obs, num_particles=50)
    drawn = draw_guide(policy, obs, action, num_particles=50)
    assert set(drawn.latents) == set(prior.latents)
    for name, value in drawn.latents.items():
        assert (value.shape, value.dtype) == (prior.latents[name].shape, prior.latents[name].dtype)
        assert type(drawn.distributions[name]) is type(prior.distributions[name])
    # each has a density wherever the other draws
    assert score_guide(policy, obs, action, prior.latents).log_prob.isfinite().all()
    assert score_prior(policy, obs, drawn.latents).log_prob.isfinite().all()


@each_action
@each_kind
def test_a_span_of_one_step_is_a_step(kind: str, actions: str) -> None:
    policy, obs = make(kind, actions), observations("step")
    assert isinstance(obs, Tensor)
    acted, span = act(policy, obs), Span(obs.unsqueeze(1), torch.ones(ROWS, 1, dtype=torch.bool))
    latents = draw_prior(policy, obs, num_particles=4).latents
    inside = acted.action.unsqueeze(1)
    assert off_by(log_joint(policy, span, inside, latents), log_joint(policy, obs, acted.action, latents)) < EXACT
    of_span = score_guide(policy, span, inside, latents).log_prob
    assert off_by(of_span, score_guide(policy, obs, acted.action, latents).log_prob) < EXACT


@each_action
@each_kind
def test_the_steps_of_a_span_share_its_latent_and_its_likelihood_is_their_sum(kind: str, actions: str) -> None:
    policy, span = make(kind, actions), observations("span")
    assert isinstance(span, Span)
    action = act(policy, span).action
    latents = draw_prior(policy, span, num_particles=4).latents
    steps = torch.stack(
        [score_model(policy, span.obs[:, t], action[:, t], latents).log_likelihood for t in range(STEPS)], -1
    )
    scores = score_model(policy, span, action, latents)
    assert off_by(scores.log_likelihood, (steps * span.mask).sum(-1)) < EXACT
    first = score_prior(policy, span.first, latents).log_prob  # drawn at the row's first observation, and only there
    assert off_by(scores.log_prior, first.expand(4, ROWS)) < EXACT


# -------------------------------------------------------------------------------------------------------- parameters


@each_action
@each_kind
def test_three_disjoint_sets_are_all_the_parameters(kind: str, actions: str) -> None:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    for policy in (make(kind, actions), make(kind, actions, encoder=encoder)):
        groups = [policy.prior_parameters(), policy.decoder_parameters(), policy.guide_parameters()]
        listed = [id(parameter) for group in groups for parameter in group]
        assert len(listed) == len(set(listed))
        assert set(listed) == {id(parameter) for parameter in policy.parameters()}
        assert bool(policy.prior_parameters()) == (kind != "standard")
        assert policy.decoder_parameters() and policy.guide_parameters()
    shared = {id(parameter) for parameter in encoder.parameters()}
    assert shared <= {id(parameter) for parameter in policy.decoder_parameters()}


def log_pi(policy: ReadyMade, obs: Observations, action: Tensor) -> Tensor:
    estimator = Exact() if isinstance(policy, MixturePolicy) else PosteriorIS(8, Prior())
    return estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action)).log_prob


@each_row
@each_action
@each_kind
def test_log_pi_moves_every_parameter_of_the_model_and_none_of_the_guide(kind: str, actions: str, rows: str) -> None:
    policy, obs = make(kind, actions, encoder=nn.Sequential(nn.Linear(3, 4), nn.Tanh())), observations(rows)
    action = actions_for(actions, obs)
    found = gradients(log_pi(policy, obs, action), model_parameters(policy))
    assert dead(policy, model_parameters(policy), found) == []
    assert gradients(log_pi(policy, obs, action), policy.guide_parameters()) == [None] * len(policy.guide_parameters())


@each_row
@each_action
@each_kind
def test_the_guide_is_moved_by_its_objective_and_moves_nothing_of_the_model(kind: str, actions: str, rows: str) -> None:
    policy, obs = make(kind, actions, encoder=nn.Sequential(nn.Linear(3, 4), nn.Tanh())), observations(rows)
    action, latents = actions_for(actions, obs), act(policy, obs).latents
    loss = Recorded().loss(policy, obs, action, latents=latents)
    assert dead(policy, policy.guide_parameters(), gradients(loss, policy.guide_parameters())) == []
    # the encoder among them: the guide reads the features and does not train them
    assert gradients(loss, model_parameters(policy)) == [None] * len(model_parameters(policy))
    bound = ELBOGuide(4).loss(policy, obs, action)
    assert dead(policy, policy.guide_parameters(), gradients(bound, policy.guide_parameters())) == []


# ----------------------------------------------------------------------------------------------------------- padding


def padded(actions: str, span: Span, action: Tensor, extra: int) -> tuple[Span, Tensor]:
    """Fill every step that was not executed with other numbers, and add ``extra`` more of those at the end."""
    junk_obs = 5.0 + torch.randn(ROWS, STEPS + extra, 3, dtype=torch.float64)
    junk = some_actions(actions, ROWS, STEPS + extra, seed=2 + extra)
    mask = torch.cat([span.mask, torch.zeros(ROWS, extra, dtype=torch.bool)], 1)
    for t in range(STEPS):
        keep = span.mask[:, t]
        junk_obs[keep, t], junk[keep, t] = span.obs[keep, t], action[keep, t]
    return Span(junk_obs, mask), junk


@pytest.mark.parametrize("extra", [0, 3])
@each_action
@each_kind
def test_padding_changes_no_probability_and_no_gradient(kind: str, actions: str, extra: int) -> None:
    policy, span = make(kind, actions), observations("span")
    assert isinstance(span, Span)
    action = act(policy, span).action
    other, other_action = padded(actions, span, action, extra)
    assert not torch.equal(other_action[:, :STEPS], action) and not torch.equal(other.obs[:, :STEPS], span.obs)
    latents = draw_prior(policy, span, num_particles=4).latents
    ours, theirs = (everything(policy, latents, *rows) for rows in ((span, action), (other, other_action)))
    assert len(ours) == 2 + len(list(policy.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert off_by(a, b) < EXACT


@each_action
@each_kind
def test_padding_may_hold_what_no_network_can_read(kind: str, actions: str) -> None:
    """NaN in observations, and actions outside their support; the encoder has no value at zero either."""
    policy, span = make(kind, actions, encoder=Direction()), observations("span")
    assert isinstance(span, Span)
    action = act(policy, span).action
    spoilt, taken = Span(span.obs.clone(), span.mask), action.clone()
    spoilt.obs[~span.mask] = torch.nan
    taken[~span.mask] = torch.nan if taken.is_floating_point() else 99
    latents = draw_prior(policy, span, num_particles=4).latents
    ours, theirs = (everything(policy, latents, *rows) for rows in ((span, action), (spoilt, taken)))
    for a, b in zip(ours, theirs, strict=True):
        assert bool(b.isfinite().all()) and off_by(a, b) < EXACT
    drawn = act(policy, spoilt)
    assert bool(drawn.log_joint.isfinite().all()) and bool(drawn.action.double().isfinite().all())
    with pytest.raises(SupportError):  # in an executed step it is refused as ever
        spoilt_too = action.clone()
        spoilt_too[0, 1] = taken[~span.mask][0]
        everything(policy, latents, span, spoilt_too)


class Direction(nn.Module):
    """An encoder that divides by the observation's length."""

    def forward(self, flat: Tensor) -> Tensor:
        return flat / flat.norm(dim=-1, keepdim=True)


def everything(policy: ReadyMade, latents: Latents, obs: Observations, taken: Tensor) -> list[Tensor]:
    """Compute both densities and all their gradients, rows weighted so that none can stand in for another."""
    weight = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64)
    joint = log_joint(policy, obs, taken, latents)
    log_q = score_guide(policy, obs, taken, latents).log_prob
    found = gradients(joint * weight, model_parameters(policy))
    found += gradients(log_q * weight, policy.guide_parameters())
    return [joint, log_q, *[value for value in found if value is not None]]


@each_action
@each_kind
def test_every_executed_step_counts(kind: str, actions: str) -> None:
    """The other side of padding: the last executed step of the longest row is in the likelihood and in the guide."""
    policy, span = make(kind, actions), observations("span")
    assert isinstance(span, Span)
    action = act(policy, span).action
    latents = draw_prior(policy, span, num_particles=2).latents
    before = log_joint(policy, span, action, latents), score_guide(policy, span, action, latents).log_prob
    moved = Span(span.obs.clone(), span.mask)
    moved.obs[0, -1] += 1.0
    after = log_joint(policy, moved, action, latents), score_guide(policy, moved, action, latents).log_prob
    for old, new in zip(before, after, strict=True):
        assert float((old - new).detach()[:, 0].abs().min()) > 1e-9
        assert torch.equal(old[:, 1:], new[:, 1:])


# ------------------------------------------------------------------------------------------- copies, states, dtypes


@each_kind
def test_a_deep_copy_is_a_policy_of_its_own(kind: str) -> None:
    for actions in ACTIONS:
        policy, obs = make(kind, actions), observations("step")
        action = act(policy, obs).action
        latents = draw_prior(policy, obs, num_particles=2).latents

        def scored(policy: ReadyMade, *given: object) -> list[Tensor]:
            obs, action, latents = given
            joint = log_joint(policy, obs, action, latents)  # type: ignore[arg-type]
            return [joint.detach(), score_guide(policy, obs, action, latents).log_prob.detach()]  # type: ignore[arg-type]

        reference = copy.deepcopy(policy)
        before = scored(policy, obs, action, latents)
        assert all(torch.equal(a, b) for a, b in zip(before, scored(reference, obs, action, latents), strict=True))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert all(torch.equal(a, b) for a, b in zip(before, scored(reference, obs, action, latents), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(before, scored(policy, obs, action, latents), strict=True))
        ours = {id(tensor) for tensor in policy.state_dict(keep_vars=True).values()}
        assert not ours & {id(tensor) for tensor in reference.state_dict(keep_vars=True).values()}


@each_action
@each_kind
def test_the_state_is_the_whole_policy(kind: str, actions: str) -> None:
    policy, obs = make(kind, actions), observations("step")
    other = make(kind, actions)
    action = act(policy, obs).action
    latents = draw_prior(policy, obs, num_particles=2).latents
    wanted = log_joint(policy, obs, action, latents), score_guide(policy, obs, action, latents).log_prob
    assert not torch.equal(log_joint(other, obs, action, latents), wanted[0])
    other.load_state_dict(policy.state_dict())
    assert torch.equal(log_joint(other, obs, action, latents), wanted[0])
    assert torch.equal(score_guide(other, obs, action, latents).log_prob, wanted[1])


@each_row
@each_action
@each_kind
def test_float32_is_float64_with_fewer_digits(kind: str, actions: str, rows: str) -> None:
    policy, obs = make(kind, actions), observations(rows)
    action = act(policy, obs).action
    drawn = draw_prior(policy, obs, num_particles=4).latents
    exact = log_joint(policy, obs, action, drawn), score_guide(policy, obs, action, drawn).log_prob

    def less(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    small = copy.deepcopy(policy).float()
    seen = Span(less(obs.obs), obs.mask) if isinstance(obs, Span) else less(obs)
    latents = {name: less(value) for name, value in drawn.items()}
    rough = (
        log_joint(small, seen, less(action), latents),
        score_guide(small, seen, less(action), latents).log_prob,
    )
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == torch.float32 and b.dtype == torch.float64
        assert off_by(a.double(), b) < 1e-5
    acted = act(small, seen)
    assert acted.log_joint.dtype == torch.float32
    assert all(not value.is_floating_point() or value.dtype == torch.float32 for value in acted.latents.values())


# ---------------------------------------------------------------------------------------------------------- encoders


class Patches(nn.Module):
    """An encoder of another make: a convolution over flattened images, and attention over its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, flat: Tensor) -> Tensor:
        self.seen.append(tuple(flat.shape))
        patches = self.convolution(flat.unflatten(-1, (1, 4, 4))).flatten(2).transpose(1, 2)
        return (patches + self.attention(patches, patches, patches, need_weights=False)[0]).mean(1)


@each_row
@each_kind
def test_any_module_is_an_encoder(kind: str, rows: str) -> None:
    image = spaces.Box(0.0, 1.0, (1, 4, 4))
    encoder = Patches()
    policy = make(kind, "box", seen=image, encoder=encoder)
    assert policy.trunk.out_features == 4
    obs = observations(rows, size=16)
    acted = act(policy, obs)
    latents = draw_prior(policy, obs, num_particles=5).latents
    joint = log_joint(policy, obs, acted.action, latents)
    assert off_by(joint, sum_of(trace_each_row(policy.model, obs, acted.action, latents))) < EXACT
    parameters = list(encoder.parameters())
    assert dead(policy, parameters, gradients(joint, parameters)) == []
    # one image a row and step, however many particles
    count = ROWS if rows == "step" else ROWS * STEPS
    encoder.seen.clear()
    log_joint(policy, obs, acted.action, latents)
    score_guide(policy, obs, acted.action, latents)
    assert encoder.seen == [(count, 16)] * 2


@each_kind
def test_an_encoder_of_the_identity_is_none(kind: str) -> None:
    policy = make(kind, "discrete")
    explicit = make(kind, "discrete", encoder=nn.Identity())
    explicit.load_state_dict(policy.state_dict())
    obs = observations("step")
    action, latents = act(policy, obs).action, draw_prior(policy, obs, num_particles=2).latents
    assert torch.equal(log_joint(policy, obs, action, latents), log_joint(explicit, obs, action, latents))


@pytest.mark.production
@pytest.mark.parametrize("encoder", [nn.Unflatten(-1, (3, 1)), nn.Flatten(0)])
def test_an_encoder_that_gives_no_row_of_features_is_refused(encoder: nn.Module) -> None:
    with pytest.raises(ShapeError) as caught:
        Trunk(SEEN, encoder)
    assert "in encoder" in str(caught.value) and "[N, F]" in str(caught.value) and "nn.Flatten()" in str(caught.value)


@each_kind
def test_an_encoder_that_looks_at_other_rows_is_refused(kind: str) -> None:
    for layer in (nn.Dropout(0.5), nn.BatchNorm1d(4)):
        with pytest.raises(OptionError, match=type(layer).__name__):
            make(kind, "box", encoder=nn.Sequential(nn.Linear(3, 4), layer))


@each_kind
def test_an_activation_of_ones_own(kind: str) -> None:
    policy = make(kind, "box", activation=nn.SiLU)
    found = [type(module) for module in policy.modules()]
    assert nn.SiLU in found and nn.Tanh not in found


def test_widths_of_ones_own() -> None:
    policy = MixturePolicy(SEEN, ACTIONS["box"], num_components=3, hidden=(7, 6, 5))
    shapes = [tuple(parameter.shape) for parameter in policy.prior.parameters() if parameter.ndim == 2]
    assert shapes == [(7, 3), (6, 7), (5, 6), (3, 5)]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (
            lambda: GaussianPolicy(SEEN, ACTIONS["box"], prior="learnt"),
            ("`prior`", '"learned" or "standard"', "learnt"),
        ),
        (lambda: MixturePolicy(SEEN, ACTIONS["box"], hidden=()), ("`hidden`", "at least one width", "(64, 64)")),
    ],
)
def test_options_out_of_range_are_refused(build: Callable[[], object], named: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        build()
    for phrase in ("expected:", "got:", *named):
        assert phrase in str(caught.value)


def test_a_misspelt_option_is_not_swallowed() -> None:
    for policy, option in itertools.product((MixturePolicy, GaussianPolicy, TwoLevelPolicy), ("hiden", "num_latents")):
        with pytest.raises(TypeError, match=option):
            policy(SEEN, ACTIONS["box"], **{option: 3})


@pytest.mark.production
@each_kind
def test_observations_of_another_shape_are_refused(kind: str) -> None:
    policy = make(kind, "box")
    span = Span(torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool))
    wrong: list[tuple[Observations, str]] = [
        (torch.zeros(2, 4, dtype=torch.float64), "[B, S=3]"),
        (torch.zeros(2, 1, 3, dtype=torch.float64), "[B, S=3]"),
        (torch.zeros(2, dtype=torch.float64), "[B, S=3]"),
        (span, "[B, T, S=3]"),
    ]
    for obs, expected in wrong:
        with pytest.raises(ShapeError) as caught:
            act(policy, obs)
        assert expected in str(caught.value) and "encode_observations" in str(caught.value)


@pytest.mark.production
@each_row
@each_kind
def test_a_guide_is_run_on_the_rows_actions(kind: str, rows: str) -> None:
    policy, obs = make(kind, "discrete"), observations(rows)
    action = act(policy, obs).action
    with pytest.raises(ShapeError, match="None"):
        policy.guide(obs, None)
    with pytest.raises(ShapeError, match=r"action\.squeeze"):
        draw_guide(policy, obs, action.unsqueeze(-1), num_particles=2)
    with pytest.raises(ShapeError, match="one action a step"):
        draw_guide(policy, obs, action.new_zeros(ROWS, STEPS + 1), num_particles=2)


@pytest.mark.production
@pytest.mark.parametrize("size", [0, -1, 2.5, "2", True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    box = spaces.Box(-1, 1, (2,))
    builders: list[tuple[Callable[..., object], str]] = [
        (MixturePolicy, "num_components"),
        (GaussianPolicy, "latent_size"),
        (TwoLevelPolicy, "num_modes"),
        (TwoLevelPolicy, "style_size"),
    ]
    for build, option in builders:
        with pytest.raises(OptionError, match=rf"`{option}`.*") as caught:
            build(box, box, **{option: size})
        assert ">= 1" in str(caught.value)
        assert repr(size) in str(caught.value)


@each_kind
def test_a_span_without_its_first_step_is_refused(kind: str) -> None:
    policy, obs = make(kind, "box"), observations("span")
    assert isinstance(obs, Span)
    mask = obs.mask.clone()
    mask[1, 0] = False
    with pytest.raises(ShapeError, match=r"(?s)every row's first step.*false in row 1 \(1 such rows\)"):
        act(policy, Span(obs.obs, mask))
