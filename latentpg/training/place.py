"""Where a run computes: on which device, and with which other workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.learners.parallel import ALONE, Group, contents_over
from latentpg.learners.workers import LAUNCHED, is_launched, joined, local_rank
from latentpg.numerics.devices import CPU, checked_device
from latentpg.runs.tensors import decode_tensors, encode_tensors

OF_WORKER = ("collector.", "scaler.carried", "factor", "actor_trace.", "critic_trace.")
"""Stems of what in a learner's state is of the environments that one worker plays; the rest is the same in all."""


@dataclass(frozen=True, eq=False)
class Place:
    """A device, and the workers that learn together."""

    group: Group = ALONE
    device: torch.device = CPU

    @property
    def writes(self) -> bool:
        """Whether this worker writes, prints and evaluates, which one of them does."""
        return self.group.rank == 0

    def saying(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Leave what is said to the worker that writes."""
        return say if self.writes else lambda text: None


HERE = Place()
"""The processor, and nobody else."""


@contextmanager
def placed(device: str, *, timeout: float | int) -> Iterator[Place]:
    """Be where a command line says, with the workers that were launched with this one, inside the scope."""
    where = checked_device(device, index=local_rank())
    with joined(where, timeout=timeout) as group:
        yield Place(group, where)


def check_not_launched(what: str) -> None:
    """Refuse what every worker of a launch would do once more."""
    if is_launched():
        raise OptionError(
            what,
            "it is nothing that workers of torchrun share out: each would do all of it",
            expected="a process of its own",
            got=", ".join(f"{name}={os.environ[name]}" for name in LAUNCHED[:2]),
            fix="the same command without torchrun",
        )


def members_of(place: Place, num_envs: int) -> int:
    """Return how many of the environments a worker plays.

    >>> members_of(HERE, 8)
    8
    """
    size = place.group.size
    if num_envs % size:
        raise OptionError(
            "parallel training",
            "`num_envs` cannot be shared out evenly",
            expected=f"a multiple of the {size} workers",
            got=str(num_envs),
            fix=f"--num-envs {-(-num_envs // size) * size}",
        )
    return num_envs // size


def gathered_state(place: Place, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with what is each worker's own; on other workers than the first it is of no use.

    What is the first worker's has its plain name, and that of worker w begins with ``worker-w.``.
    """
    if place.group.size == 1:
        return dict(state)
    own = {name: value for name, value in state.items() if _is_own(name)}
    found = dict(state)
    for rank, content in enumerate(contents_over(place.group, encode_tensors(own))):
        if rank:
            found |= {f"worker-{rank}.{name}": value for name, value in decode_tensors(content).items()}
    return found


def state_of_worker(place: Place, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take a worker's own state out of a checkpoint's; one of another number of workers is refused."""
    then, now = int(facts.get("workers", 1)), place.group.size
    if then != now:
        command = f"torchrun --nproc-per-node {then} -m latentpg resume RUN" if then > 1 else "latentpg resume RUN"
        raise OptionError(
            "latentpg resume",
            "a run goes on with as many workers as it began with: each has environments of its own",
            expected=f"{then} worker{'s' if then > 1 else ''}",
            got=str(now),
            fix=command,
        )
    shared = {name: value for name, value in state.items() if not name.startswith("worker-")}
    if place.group.rank == 0:
        return shared
    prefix = f"worker-{place.group.rank}."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {**shared, **own}


def agreed_signal(place: Place, signal: int | None) -> int | None:
    """Return the signal that any worker was asked to stop by, so that all end after the same update."""
    if place.group.size == 1:
        return signal
    return int(place.group.gather(torch.tensor([signal or 0])).max()) or None


def moved_between(before: str, now: str) -> str:
    """Say why a run that goes on on another device is another run; nothing where it is the same one.

    >>> moved_between("cuda", "cpu")
    'went on on cpu, where sums are taken in another order than on cuda'
    """
    return "" if now == before else f"went on on {now}, where sums are taken in another order than on {before}"


def exactness(inexact: str) -> dict[str, Any]:
    """Say whether a run is the same as one that never stopped, and if it is not, why.

    >>> exactness("")
    {'exact_resume': True}
    """
    if not inexact:
        return {"exact_resume": True}
    return {"exact_resume": False, "exact_resume_why": inexact.strip()}


def told_by_first(place: Place, number: float | int) -> float:
    """Return the first worker's number."""
    if place.group.size == 1:
        return float(number)
    return float(place.group.gather(torch.tensor([float(number)], dtype=torch.float64))[0])


def _is_own(name: str) -> bool:
    return any(name == stem or (stem.endswith(".") and name.startswith(stem)) for stem in OF_WORKER)
