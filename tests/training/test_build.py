"""What a configuration builds: the parts that no other test looks at."""

import math

import pytest
import torch

from latentpg.errors import OptionError
from latentpg.policies.heads import BoxHead
from latentpg.training import prepared, resolve


@pytest.mark.parametrize("policy", ["mixture", "gaussian", "two-level", "plain"])
@pytest.mark.parametrize("value", [0.0, -2.0])
def test_actions_begin_as_wide_as_asked(policy: str, value: float) -> None:
    config = resolve({"env": "Pendulum-v1", "policy": policy, "num_envs": 1, "initial_log_std": value, "hidden": [4]})
    with prepared(config) as built:
        assert isinstance(built.policy, torch.nn.Module)
        heads = [part for part in built.policy.modules() if isinstance(part, BoxHead)]
        assert [head.log_std.tolist() for head in heads] == [[value]]


def test_a_width_that_is_no_number_is_refused() -> None:
    with pytest.raises(OptionError, match="initial_log_std"):
        resolve({"env": "Pendulum-v1", "initial_log_std": math.inf})
