"""The workers that ``torchrun`` started, as a group: gloo between processors, NCCL between graphics cards.

``joined`` is a scope. Inside it the processes of a launch are a :class:`~latentpg.learners.parallel.Group`; a process
that nobody launched with others is a group of its own. Nothing of it stays when the scope is left.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from latentpg.learners.faults import WorkerFault
from latentpg.learners.parallel import ALONE, Group, texts_over
from latentpg.numerics.devices import CPU

TIMEOUT = 600
"""Seconds that a worker waits for the others, by default: an evaluation, which one alone plays, must fit in."""

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` tells each process that it starts, by its environment."""


@dataclass(frozen=True, eq=False)
class Workers:
    """The processes of one launch; what they ask of each other travels by ``device``."""

    rank: int
    size: int
    device: torch.device
    timeout: float | int

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over workers, the same bits in each."""
        moved = values.detach().to(self.device, copy=True)
        self._answered(lambda: dist.all_reduce(moved))
        return moved.to(values.device)

    def gather(self, values: Tensor) -> Tensor:
        """Return the tensors of all workers, ``[W, ...]``."""
        moved = values.detach().to(self.device).contiguous()
        every = [torch.empty_like(moved) for _ in range(self.size)]
        self._answered(lambda: dist.all_gather(every, moved))
        return torch.stack(every).to(values.device)

    def _answered(self, ask: Callable[[], object]) -> None:
        try:
            ask()
        except RuntimeError as error:  # every fault of torch.distributed is one
            raise WorkerFault(
                "parallel training",
                f"worker {self.rank} of {self.size} waited for the others in vain",
                expected=f"an answer from each within {self.timeout} s",
                got=" ".join(str(error).split())[:200],
                likely="another worker has ended, or hangs; its own message says why",
                fix="latentpg resume RUN with as many workers: it goes on from the newest whole checkpoint",
            ) from error


def is_launched() -> bool:
    """Tell whether this process was started with others that are to learn with it."""
    return all(name in os.environ for name in LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def local_rank() -> int:
    """Return this process's number on its machine, which chooses its graphics card."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_launched() else 0


@contextmanager
def joined(device: torch.device = CPU, *, timeout: float | int = TIMEOUT) -> Iterator[Group]:
    """Be one of the workers of a launch inside the scope, or alone.

    ``timeout`` is how many seconds a worker waits for the others before it gives up with a :class:`WorkerFault`.

    >>> with joined() as group:
    ...     group.rank, group.size
    (0, 1)
    """
    if not is_launched():
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise WorkerFault(
            "parallel training",
            "the workers did not find each other",
            expected=f"{os.environ['WORLD_SIZE']} of them at {os.environ['MASTER_ADDR']} within {timeout} s",
            got=" ".join(str(error).split())[:200],
        ) from error
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device, timeout)
    finally:
        with suppress(RuntimeError):  # the others may be gone already
            dist.destroy_process_group()


def check_alike(group: Group, content: bytes, *, what: str) -> None:
    """Refuse to go on where a worker has another content than the others: each would learn something else."""
    if group.size == 1:
        return
    digests = texts_over(group, hashlib.sha256(content).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise WorkerFault(
            "parallel training",
            f"workers differ in {what}",
            expected="the same in all of them",
            got=f"another in worker {', '.join(map(str, others))} than in worker 0",
            likely="another command, version or file on one of the machines",
        )
