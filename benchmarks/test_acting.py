"""What acting costs over running the program bare: a latent is recorded and log p(z, a | s) computed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.cases import OBSERVATION, POLICIES
from benchmarks.measure import Row, compare
from latentpg.programs import act

ROUNDS = 500


def test_act(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    for name, make in POLICIES.items():
        policy = make()
        for rows in (1, 64):
            obs = torch.randn(rows, *OBSERVATION.shape)

            def bare(policy=policy, obs=obs) -> torch.Tensor:  # noqa: ANN001 (bound)
                with torch.inference_mode():
                    return policy.model(obs)

            def recorded(policy=policy, obs=obs) -> object:  # noqa: ANN001 (bound)
                return act(policy, obs)

            torch.manual_seed(1)
            alone = bare()
            torch.manual_seed(1)
            assert torch.equal(alone, act(policy, obs).action)
            result = compare({"bare": bare, "act": recorded}, baseline="bare", rounds=ROUNDS)
            claim = f"act() over the bare program, {name}, B={rows}"
            record(Row(claim, "-", result.ratio["act"], "x bare", None, {"comparison": result}))
    benchmark.pedantic(recorded, rounds=50, warmup_rounds=2)
