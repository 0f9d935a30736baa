"""Claim: scoring plus backward costs at most 1.10x hand-written tensor maths, and at most 0.85x of it compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch

from benchmarks.cases import NUM_PARTICLES, POLICIES, largest_difference, make_case
from benchmarks.hand_written import draw_gaussian_guide, log_marginal
from benchmarks.measure import Row, compare
from latentpg.estimators import Guide, PosteriorIS
from latentpg.estimators.compiled import Compiled

ROUNDS = 200
SCORE = PosteriorIS(NUM_PARTICLES, Guide())


@pytest.mark.parametrize("name", POLICIES)
def test_scoring_and_backward(name: str, benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    case = make_case(name)
    functions = {"hand-written": case.by_hand, "library": lambda: case.by_library(SCORE)}
    if has_compiler := shutil.which("g++") or shutil.which("clang++"):
        functions["library, compiled"] = lambda: case.by_library(Compiled(SCORE))
        functions["hand-written, compiled"] = _compiled_by_hand(case)
    difference = {k: max(largest_difference(f(), case.by_hand())) for k, f in functions.items()}
    assert max(difference.values()) < 1e-5, difference
    result = compare(functions, baseline="hand-written", rounds=ROUNDS)
    details = {"comparison": result, "largest difference": difference}
    ratio = result.ratio["library"]
    record(Row(f"scoring + backward, {name}", "<= 1.10", ratio, "x hand", ratio <= 1.10, details))
    if has_compiler:
        ratio = result.ratio["library, compiled"]
        record(Row(f"the same, torch.compile, {name}", "<= 0.85", ratio, "x hand", ratio <= 0.85))
        ratio = result.ratio["hand-written, compiled"]
        record(Row(f"hand-written under torch.compile, {name}", "-", ratio, "x hand", None))
    benchmark.extra_info.update(result.ratio)
    benchmark.pedantic(functions["library"], rounds=20, warmup_rounds=2)


def test_proposing_scoring_and_backward(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    """The whole step, with K draws of the guide in front."""
    case = make_case("Gaussian latent, Box action")

    def by_library() -> object:
        particles = SCORE.propose(case.policy, case.obs, case.action)
        log_prob = SCORE.estimate(case.policy, case.obs, case.action, particles).log_prob
        return log_prob, case.gradient(log_prob)

    def by_hand() -> object:
        z, log_proposal = draw_gaussian_guide(case.weights, case.obs, case.action, NUM_PARTICLES)
        log_prob = log_marginal(case.weights, case.obs, case.action, z, log_proposal)
        return log_prob, case.gradient(log_prob)

    results = []
    for function in (by_library, by_hand):
        torch.manual_seed(1)
        results.append(function())
    assert max(largest_difference(*results)) < 1e-5
    result = compare({"hand-written": by_hand, "library": by_library}, baseline="hand-written", rounds=ROUNDS)
    ratio = result.ratio["library"]
    record(Row("proposing + scoring + backward, Gaussian latent", "-", ratio, "x hand", None, {"comparison": result}))
    benchmark.extra_info.update(result.ratio)
    benchmark.pedantic(by_library, rounds=20, warmup_rounds=2)


def _compiled_by_hand(case) -> Callable[[], object]:  # noqa: ANN001 (a Case)
    """Give hand-written code the compiler too: what is left of the ratio then is the library's own."""
    options = {"cpp.use_decompose_tanh": True}
    score = torch.compile(log_marginal, fullgraph=True, dynamic=True, options=options)

    def run() -> object:
        z, log_proposal = case.particles.latents["z"], case.particles.log_proposal
        log_prob = score(case.weights, case.obs, case.action, z, log_proposal)
        return log_prob, case.gradient(log_prob)

    return run
