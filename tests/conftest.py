"""What every test stands on: Hypothesis profiles, a random stream of its own, and global state left as it was found."""

import os
import zlib
from collections.abc import Iterator

import pyro
import pytest
import torch
from hypothesis import settings

# "default" draws the same examples in every run, so that a failure belongs to the change and not to the day;
# "explore" draws new ones, for a person looking for trouble: HYPOTHESIS_PROFILE=explore make tests
settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# The networks here are small: threads that contend for two cores make them slower, not faster.
torch.set_num_threads(1)


def global_state() -> dict[str, object]:
    """Return every global switch of torch and Pyro that library code could be tempted to turn."""
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's anomaly detection": torch.is_anomaly_enabled(),
        "Pyro's settings": pyro.settings.get(),
        "Pyro's handler stack": len(pyro.poutine.runtime._PYRO_STACK),
    }


@pytest.fixture(autouse=True)
def own_random_stream(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give each test torch's stream at a state that depends on its name alone, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
        yield


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Iterator[None]:
    """Fail a test, or the library under it, that leaves a global switch turned."""
    before = global_state()
    yield
    after = global_state()
    pyro.clear_param_store()  # tests of other people's programs fill it on purpose
    turned = [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    assert not turned, "left turned after the test:\n  " + "\n  ".join(turned)
