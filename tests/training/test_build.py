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


@pytest.mark.parametrize("policy", ["mixture", "gaussian", "two-level", "plain"])
def test_last_layers_begin_as_small_as_asked(policy: str) -> None:
    """Rows of an orthogonal matrix have length one, so those of the last layer have the gain's."""
    lengths = []
    for gain in (0.01, 2.0):
        config = resolve({"env": "Pendulum-v1", "policy": policy, "num_envs": 1, "hidden": [8], "output_gain": gain})
        with prepared(config) as built:
            assert isinstance(built.policy, torch.nn.Module)
            network = dict(built.policy.named_modules())["network" if policy == "plain" else "decoder.network"]
            last = [part for part in network.modules() if isinstance(part, torch.nn.Linear)][-1]
            lengths.append(last.weight.norm(dim=1).tolist())
    assert lengths == [pytest.approx([0.01]), pytest.approx([2.0])]


@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_a_gain_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match="output_gain"):
        resolve({"env": "Pendulum-v1", "output_gain": value})
