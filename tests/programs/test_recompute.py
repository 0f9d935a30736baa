import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn

from latentpg.programs.recompute import recomputed

CPU = torch.device("cpu")


class Network(nn.Module):
    """A network that counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layers(x).exp()


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()


def test_gradients_are_those_of_the_plain_run() -> None:
    network, x = Network(), inputs()
    wanted = [x, *network.parameters()]
    plain = torch.autograd.grad(network(x).sum(), wanted)
    again = torch.autograd.grad(recomputed(lambda: network(x), CPU).sum(), wanted)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_it_runs_twice_and_no_more() -> None:
    network, x = Network(), inputs()
    value = recomputed(lambda: network(x), CPU)
    assert network.runs == 1
    value.sum().backward()
    assert network.runs == 2


def test_gradients_of_gradients() -> None:
    network, x = Network(), inputs()

    def curvature(value: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    plain = curvature(network(x))
    assert plain.abs().max() > 1e-3
    assert torch.equal(curvature(recomputed(lambda: network(x), CPU)), plain)


def test_a_graph_that_is_kept_goes_backward_twice() -> None:
    network, x = Network(), inputs()
    value = recomputed(lambda: network(x), CPU).sum()
    first = torch.autograd.grad(value, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(value, x)[0], first)


def test_only_part_of_the_graph_is_wanted() -> None:
    network, x = Network(), inputs()
    last = network.layers[2].bias
    assert isinstance(last, Tensor)
    plain = torch.autograd.grad(network(x).sum(), last)[0]
    assert torch.equal(torch.autograd.grad(recomputed(lambda: network(x), CPU).sum(), last)[0], plain)


def test_nothing_is_kept_between_the_passes() -> None:
    network = Network()
    kept: list[weakref.ref[Tensor]] = []

    def run() -> Tensor:
        hidden = network.layers[0](torch.ones(4, 3)).tanh()
        kept.append(weakref.ref(hidden))
        return network.layers[2](hidden)

    value = recomputed(run, CPU)
    gc.collect()
    assert kept[0]() is None
    value.sum().backward()
    del value
    gc.collect()
    assert kept[1]() is None


def test_it_runs_again_under_the_autocast_of_its_first_run() -> None:
    network, x = Network(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, again = network(x).sum(), recomputed(lambda: network(x), CPU).sum()
    expected = torch.autograd.grad(plain, x)[0]
    assert torch.equal(torch.autograd.grad(again, x)[0], expected)
    full = torch.autograd.grad(network(x).sum(), x)[0]
    assert not torch.equal(full, expected)


def test_an_error_of_the_first_run_is_the_callers() -> None:
    def fails() -> Tensor:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        recomputed(fails, CPU)


def test_it_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from latentpg.programs.recompute import recomputed\n"
        "x = torch.ones(2, requires_grad=True)\n"
        "recomputed(lambda: (3 * x).exp().sum(), x.device).backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
