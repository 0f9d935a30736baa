"""Compiled scoring: the same numbers and the same errors, from one piece of code for every batch size and K.

Most of it is settled when ``torch.compile`` traces the program, which needs no C++ compiler: these tests count the
graphs that are traced, and run them as they are. The last ones go all the way; without a compiler they expect the
library's own error. One of them is not called slow, though a cold start takes it some ten seconds.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from pyro import poutine
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor, nn

from latentpg.errors import EstimatorError, ShapeError, SupportError
from latentpg.estimators import (
    ELBO,
    Compiled,
    ConditionalIS,
    Estimator,
    Exact,
    Guide,
    Particles,
    PosteriorIS,
    Reparameterized,
)
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import LatentPolicy, Span, act, compiling, draw_guide, log_joint, model_parameters, row_blocks
from latentpg.programs.compiling import compiled_scoring
from latentpg.programs.run import score_in_one_piece

pytestmark = pytest.mark.production

OBS = spaces.Box(-1.0, 1.0, (3,))
HAS_COMPILER = any(shutil.which(name) for name in ("g++", "clang++"))

POLICIES: dict[str, Callable[[], LatentPolicy]] = {
    "gaussian": lambda: GaussianPolicy(OBS, spaces.Box(-1.0, 1.0, (2,)), hidden=(8,)).double(),
    "mixture": lambda: MixturePolicy(OBS, spaces.Discrete(3), num_components=5, hidden=(8,)).double(),
    "two levels": lambda: TwoLevelPolicy(OBS, spaces.MultiBinary(2), hidden=(8,)).double(),
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Have ``torch.compile`` trace as ever and run what it traced as it is; list the traces."""
    with pyro.settings.context(validate_distributions_torch=False):
        compiling._compiled()  # what it tells torch.compile of Pyro's functions can be told once only
    torch._dynamo.reset()
    traced: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:  # noqa: ANN401 (torch's own)
        traced.append(graph)
        return graph.forward

    limit: dict[str, Any] = {"recompile_limit": compiling.RECOMPILE_LIMIT}
    trace = torch.compile(compiling._score_and_check, fullgraph=True, dynamic=True, backend=backend, **limit)
    monkeypatch.setattr(compiling, "_compiled", lambda: trace)
    yield traced
    torch._dynamo.reset()


def observations(rows: int, steps: int | None = None) -> Tensor | Span:
    if steps is None:
        return torch.randn(rows, 3, dtype=torch.float64)
    mask = torch.rand(rows, steps) < 0.6
    mask[:, 0] = True
    return Span(torch.randn(rows, steps, 3, dtype=torch.float64), mask)


def assert_same_as_uncompiled(
    policy: LatentPolicy, estimator: Estimator, obs: Tensor | Span, *, tolerance: float = 1e-12
) -> None:
    acted = act(policy, obs)
    compiled = Compiled(estimator)
    particles = compiled.propose(policy, obs, acted.action, acted.latents)
    results = []
    for way in (estimator, compiled):
        value = way.estimate(policy, obs, acted.action, particles).log_prob
        parts = torch.autograd.grad((value * value.detach()).sum(), model_parameters(policy), allow_unused=True)
        results.append([value.detach(), *[part for part in parts if part is not None]])
        assert len(results[-1]) > 2
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------ one trace


@pytest.mark.parametrize("kind", POLICIES)
def test_values_and_gradients_are_the_uncompiled_ones_from_one_trace(kind: str, graphs: list[object]) -> None:
    """Batch size, K (also K = B, and both of them a size of the networks), parameters and estimator may change."""
    policy = POLICIES[kind]()
    for rows, estimator in (
        (5, ConditionalIS(4, Guide())),
        (7, ConditionalIS(4, Guide())),
        (7, PosteriorIS(7)),
        (3, ELBO(2)),
        (8, PosteriorIS(8, Guide())),
        (50, ConditionalIS(3)),
    ):
        assert_same_as_uncompiled(policy, estimator, observations(rows))
        with torch.no_grad():
            for parameter in model_parameters(policy):
                parameter.mul_(1.1)
    assert len(graphs) == 1


def test_another_type_or_number_of_dimensions_is_another_trace_and_no_more(graphs: list[object]) -> None:
    policy = MixturePolicy(OBS, spaces.Box(-1.0, 1.0, (2,)), num_components=3, hidden=(8,)).double()
    for rows in (4, 6):
        assert_same_as_uncompiled(policy, ConditionalIS(3), observations(rows))
    assert len(graphs) == 1
    for rows, steps in ((4, 5), (6, 3)):
        assert_same_as_uncompiled(policy, ConditionalIS(3), observations(rows, steps))
    assert len(graphs) == 2
    policy.float()
    for rows in (4, 6):
        assert_same_as_uncompiled(policy, ConditionalIS(3), torch.randn(rows, 3), tolerance=1e-5)
    assert len(graphs) == 3


def test_every_value_of_a_discrete_latent(graphs: list[object]) -> None:
    assert_same_as_uncompiled(POLICIES["mixture"](), Exact(), observations(4))
    assert len(graphs) == 1


def test_a_reparameterised_policy_is_refused_and_not_scored_otherwise(graphs: list[object]) -> None:
    with pytest.raises(EstimatorError, match="without Compiled"):
        assert_same_as_uncompiled(POLICIES["gaussian"](), Reparameterized(4), observations(5))
    assert not graphs


def test_blocks_of_rows_are_compiled_too(graphs: list[object]) -> None:
    policy = POLICIES["gaussian"]()
    with row_blocks(4 * 5):
        for rows in (10, 14, 28):  # the last block is smaller than the others, but for the first
            assert_same_as_uncompiled(policy, ConditionalIS(4), observations(rows))
    assert len(graphs) == 1


def test_nothing_else_is_compiled(graphs: list[object]) -> None:
    policy = POLICIES["mixture"]()
    obs = observations(4)
    acted = act(policy, obs)
    particles = Compiled(ConditionalIS(3)).propose(policy, obs, acted.action, acted.latents)
    log_joint(policy, obs, acted.action, particles.latents)
    assert not graphs
    with compiled_scoring():
        log_joint(policy, obs, acted.action, particles.latents)
        assert len(graphs) == 1
        torch.func.vmap(lambda _: log_joint(policy, obs, acted.action, particles.latents))(torch.zeros(2))
    assert len(graphs) == 1


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_an_action_outside_the_support_is_named_by_its_row(graphs: list[object]) -> None:
    policy = POLICIES["mixture"]()
    obs, action = observations(6), torch.tensor([0, 1, 2, 1, 0, 2])
    particles = PosteriorIS(4).propose(policy, obs, action)
    Compiled(PosteriorIS(4)).estimate(policy, obs, action, particles)
    for value in (3, -1):
        action[4] = value
        with pytest.raises(SupportError, match=f"{value} in row 4"):
            Compiled(PosteriorIS(4)).estimate(policy, obs, action, particles)
        with row_blocks(8), pytest.raises(SupportError, match=f"{value} in row 4"):
            Compiled(PosteriorIS(4)).estimate(policy, obs, action, particles)
    halves = MixturePolicy(OBS, spaces.MultiBinary(2), num_components=3, hidden=(8,)).double()
    three = torch.randn(3, 3, dtype=torch.float64)
    flags = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.5]]).double()
    particles = PosteriorIS(4).propose(halves, three, flags.round())
    with pytest.raises(SupportError, match="in row 2"):  # which a score would be computed for
        Compiled(PosteriorIS(4)).estimate(halves, three, flags, particles)


def test_mistakes_are_told_as_without_it(graphs: list[object]) -> None:
    policy = POLICIES["gaussian"]()
    obs, action = observations(4), torch.zeros(4, 1, dtype=torch.float64)
    particles = PosteriorIS(3, Guide()).propose(policy, obs, action.expand(4, 2))
    messages = []
    for estimator in (PosteriorIS(3), Compiled(PosteriorIS(3))):
        with pytest.raises(ShapeError) as caught:
            estimator.estimate(policy, obs, action, particles)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


class Looks(nn.Module):
    """Decides by a number in a tensor, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0] + self.loc, 1.0))
        scale = 1.0 if float(obs.sum()) > 0 else 2.0
        pyro.sample("action", dist.Normal(z, scale), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", dist.Normal(obs[:, 0], 1.0))

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.loc]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []

    guide_parameters = decoder_parameters


def test_a_program_that_cannot_be_traced_is_an_estimator_error_that_says_why(graphs: list[object]) -> None:
    policy, obs, action = Looks(), torch.randn(4, 3), torch.zeros(4)
    particles = PosteriorIS(3).propose(policy, obs, action)
    PosteriorIS(3).estimate(policy, obs, action, particles)
    with pytest.raises(EstimatorError, match="cannot be compiled") as caught:
        Compiled(PosteriorIS(3)).estimate(policy, obs, action, particles)
    text = str(caught.value)
    assert "item()" in text or "data-dependent" in text or "Scalar" in text, text
    assert "without Compiled(...)" in text
    assert caught.value.__cause__ is not None
    assert not graphs


def failing_compiler(error: Exception) -> Callable[[], Callable[..., object]]:
    def fail(*arguments: object) -> object:
        raise error

    return lambda: fail


class BackendFailed(RuntimeError):
    """What ``torch.compile`` raises when the code it generated cannot be built: the reason is inside."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("backend='inductor' raised:\nInvalidCxxCompiler: ...")
        self.inner_exception = inner


def test_without_a_compiler_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = RuntimeError("No working C++ compiler found in cpp.cxx\nand more")
    monkeypatch.setattr(compiling, "_compiled", failing_compiler(BackendFailed(reason)))
    policy, obs = POLICIES["mixture"](), observations(4)
    action = torch.tensor([0, 1, 2, 0])
    particles = PosteriorIS(3).propose(policy, obs, action)
    with pytest.raises(EstimatorError) as caught:
        Compiled(PosteriorIS(3)).estimate(policy, obs, action, particles)
    lines = str(caught.value).splitlines()
    assert "and a C++ compiler" in lines[1]
    assert lines[2].endswith("RuntimeError: No working C++ compiler found in cpp.cxx")
    with pytest.raises(SupportError, match="5 in row 1"):  # a mistake of the caller's comes first
        Compiled(PosteriorIS(3)).estimate(policy, obs, torch.tensor([0, 5, 2, 0]), particles)
    PosteriorIS(3).estimate(policy, obs, action, particles)  # and the plain way is open again


def test_an_error_without_words_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_compiled", failing_compiler(AssertionError()))
    policy, obs, action = POLICIES["mixture"](), observations(2), torch.tensor([0, 1])
    particles = PosteriorIS(3).propose(policy, obs, action)
    with pytest.raises(EstimatorError, match="AssertionError"):
        Compiled(PosteriorIS(3)).estimate(policy, obs, action, particles)


# ------------------------------------------------------------------------------------------------------ Pyro untouched


def test_pyro_outside_of_compiled_scoring_is_untouched(graphs: list[object]) -> None:
    functions = pyro.sample, pyro.primitives.sample, SubsampleMessenger._subsample

    seen: Any = torch.tensor([True, False])  # a BoolTensor for Pyro's annotation, which no tensor is for a checker

    def program() -> None:
        with pyro.plate("rows", 4, subsample_size=2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(2), obs_mask=seen)

    torch.manual_seed(0)
    before = poutine.trace(program).get_trace()
    assert_same_as_uncompiled(POLICIES["mixture"](), PosteriorIS(3), observations(4))
    with pytest.raises(EstimatorError):
        Compiled(PosteriorIS(3)).estimate(
            Looks(), torch.zeros(4, 3), torch.zeros(4), Particles({"z": torch.zeros(3, 4)}, torch.zeros(3, 4))
        )
    assert functions == (pyro.sample, pyro.primitives.sample, SubsampleMessenger._subsample)
    assert not poutine.runtime._PYRO_STACK and not pyro.get_param_store()
    torch.manual_seed(0)
    with compiled_scoring():
        after = poutine.trace(program).get_trace()
    assert list(after.nodes) == list(before.nodes)
    assert float(after.log_prob_sum()) == float(before.log_prob_sum())


@pytest.mark.parametrize("validates", [True, False])
def test_validation_of_distributions_stays_as_it_was(validates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` turns it off for good when it is first called, without a word."""
    inside: list[bool] = []

    def compiled() -> Callable[..., tuple[Tensor, None]]:
        def score(policy: LatentPolicy, obs: Any, action: Tensor, latents: Any) -> tuple[Tensor, None]:  # noqa: ANN401
            inside.append(pyro.settings.get("validate_distributions_torch"))
            return score_in_one_piece(policy, obs, action, latents), None

        torch.distributions.Distribution.set_default_validate_args(False)  # as it does
        return score

    monkeypatch.setattr(compiling, "_compiled", compiled)
    policy, obs, action = POLICIES["mixture"](), observations(2), torch.tensor([0, 1])
    particles = PosteriorIS(3).propose(policy, obs, action)
    with pyro.settings.context(validate_distributions_torch=validates):
        Compiled(PosteriorIS(3)).estimate(policy, obs, action, particles)
        assert pyro.settings.get("validate_distributions_torch") is validates
    assert inside == [False]


# ------------------------------------------------------------------------------------------------------- generated code


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "mixture" else pytest.mark.slow) for kind in POLICIES]
)
def test_generated_code_gives_the_same_values_and_gradients(kind: str) -> None:
    policy = POLICIES[kind]()
    for rows, estimator in ((5, ConditionalIS(4, Guide())), (9, ConditionalIS(3)), (20, PosteriorIS(20))):
        if HAS_COMPILER:
            assert_same_as_uncompiled(policy, estimator, observations(rows), tolerance=1e-10)
        else:
            with pytest.raises(EstimatorError, match=r"C\+\+ compiler"):
                assert_same_as_uncompiled(policy, estimator, observations(rows), tolerance=1e-10)


@pytest.mark.slow
def test_generated_code_in_blocks_and_its_errors() -> None:
    policy = POLICIES["mixture"]()
    obs = observations(14)
    action = act(policy, obs).action
    latents = draw_guide(policy, obs, action, num_particles=3).latents

    def score() -> tuple[Tensor, ...]:
        value = log_joint(policy, obs, action, latents)
        return value.detach(), *torch.autograd.grad(value.square().sum(), model_parameters(policy))

    plain = score()
    with compiled_scoring(), row_blocks(12):
        if not HAS_COMPILER:
            with pytest.raises(EstimatorError, match=r"C\+\+ compiler"):
                score()
            return
        for one, other in zip(score(), plain, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)
        action[9] = 3
        with pytest.raises(SupportError, match="3 in row 9"):
            score()


@pytest.mark.slow
def test_a_machine_without_a_compiler_gets_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real thing: ``torch.compile`` is shown a compiler that is not there."""
    import torch._inductor.config as config

    policy = MixturePolicy(OBS, spaces.Box(-1.0, 1.0, (2,)), num_components=5, hidden=(7,)).double()
    obs = observations(4)
    action = act(policy, obs).action
    particles = PosteriorIS(3).propose(policy, obs, action)
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing is found that was built before
    with config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        with pytest.raises(EstimatorError, match="cannot be compiled") as caught:
            Compiled(PosteriorIS(3)).estimate(policy, obs, action, particles)
    torch._dynamo.reset()
    assert "C++ compiler" in str(caught.value).splitlines()[2]
