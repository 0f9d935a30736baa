"""Where tensors are: the processor, or a graphics card.

Environments stay on the processor. Policies, rows, particles, statistics and random streams are on the device that the
policy's parameters are on; who makes a tensor beside others makes it where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from latentpg.errors import OptionError

CPU = torch.device("cpu")
"""Where tensors are unless somebody says otherwise."""

DEVICES = ("cpu", "cuda")
"""What a command's ``--device`` may name."""


def checked_device(name: str, *, index: int = 0) -> torch.device:
    """Return a device by its name; a graphics card that is not there is an :class:`~latentpg.errors.OptionError`.

    ``index`` chooses among several cards; workers on one machine take one each.

    >>> checked_device("cpu")
    device(type='cpu')
    """
    if name not in DEVICES:
        raise OptionError("--device", "unknown device", expected=" or ".join(DEVICES), got=repr(name), fix="cpu")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise OptionError(
            "--device",
            "no graphics card that this build of torch can use",
            expected="torch.cuda.is_available()",
            got=f"torch {torch.__version__}, built for CUDA {torch.version.cuda}",
            likely="a build of torch for the processor alone"
            if torch.version.cuda is None
            else "no driver, or no card",
            fix="--device cpu, or another build: make setup TORCH_ARGS='--index-url ...'",
        )
    if index >= torch.cuda.device_count():
        raise OptionError(
            "--device",
            "more workers on this machine than graphics cards",
            expected=f"at most {torch.cuda.device_count()}",
            got=f"worker {index} of this machine, counted from 0",
            fix="torchrun --nproc-per-node with as many as there are cards",
        )
    return torch.device("cuda", index)


@contextmanager
def made_on(device: torch.device) -> Iterator[None]:
    """Make every tensor on a device inside the scope, where nothing else is said.

    On the processor the scope does nothing, and costs nothing.

    >>> with made_on(CPU):
    ...     torch.zeros(()).device
    device(type='cpu')
    """
    if device.type == "cpu":
        yield
        return
    with device:
        yield


def device_of(module: object) -> torch.device:
    """Return where a module's parameters or buffers are; the processor, if it has none.

    >>> device_of(nn.Linear(2, 1))
    device(type='cpu')
    """
    if not isinstance(module, nn.Module):
        return CPU
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), CPU)
