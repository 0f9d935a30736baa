"""Claim: R = 1000 replicate gradients of a 1,000-parameter policy are at least 10x faster than a Python loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from gymnasium import spaces

from benchmarks.cases import OBSERVATION
from benchmarks.measure import Row
from latentpg.estimators import PosteriorIS, Prior, replicate_gradients
from latentpg.policies import GaussianPolicy, MixturePolicy
from latentpg.programs import act, model_parameters

NUM_REPLICATES = 1000
NUM_ROWS = 16
ESTIMATOR = PosteriorIS(8, Prior())
POLICIES = {
    "Gaussian": lambda: GaussianPolicy(OBSERVATION, spaces.Box(-1, 1, (2,)), latent_size=2, hidden=(16, 16)),
    "discrete": lambda: MixturePolicy(OBSERVATION, spaces.Discrete(4), num_components=4, hidden=(16, 16)),
}


def test_replicate_gradients(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    for name, make in POLICIES.items():
        policy = make()
        obs = torch.randn(NUM_ROWS, *OBSERVATION.shape)
        action = act(policy, obs).action
        parameters = model_parameters(policy)

        def loop(policy=policy, obs=obs, action=action, parameters=parameters) -> torch.Tensor:  # noqa: ANN001 (bound)
            rows = []
            for _ in range(NUM_REPLICATES):
                particles = ESTIMATOR.propose(policy, obs, action)
                log_prob = ESTIMATOR.estimate(policy, obs, action, particles).log_prob.mean()
                rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(log_prob, parameters)]))
            return torch.stack(rows)

        def batched(policy=policy, obs=obs, action=action) -> torch.Tensor:  # noqa: ANN001 (bound)
            return replicate_gradients(policy, ESTIMATOR, obs, action, num_replicates=NUM_REPLICATES)[0]

        batched()
        ratios, seconds, results = [], [], (loop(), batched())
        for _ in range(5):
            taken = []
            for function in (loop, batched):
                start = time.perf_counter()
                function()
                taken.append(time.perf_counter() - start)
            ratios.append(taken[0] / taken[1])
            seconds.append(tuple(taken))
        # independent draws of one law: the means of R gradients agree within five standard errors of their difference
        spread = (results[0].var(0) + results[1].var(0)).div(NUM_REPLICATES).sqrt()
        off = ((results[0].mean(0) - results[1].mean(0)).abs() / (spread + 1e-9)).max()
        assert float(off) < 5.5, float(off)
        ratio = sorted(ratios)[2]
        size = sum(p.numel() for p in parameters)
        details = {"parameters": size, "rows": NUM_ROWS, "particles": 8, "seconds (loop, batched)": seconds}
        record(
            Row(
                f"R=1000 replicate gradients, {name} latent, P={size}", ">= 10", ratio, "x faster", ratio >= 10, details
            )
        )
    benchmark.extra_info["times faster than a loop"] = ratio
    benchmark.pedantic(batched, rounds=3)
