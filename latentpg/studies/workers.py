"""The processes that cells run in: those of this machine, through joblib's loky, or a Ray cluster's, through the same.

``workers(backend, num_workers)`` is a scope. Inside it a task is mapped over keys, and results come as they finish;
when it is left, by the end, an error or Ctrl-C, no worker is running any more. A worker whose parent was killed without
a chance to stop it notices within a second and ends too.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, get_args

import torch

from latentpg.errors import OptionError

Backend = Literal["process", "ray", "serial"]
"""Processes of this machine, a Ray cluster, or no other process at all."""

BACKENDS: tuple[str, ...] = get_args(Backend)
"""Every backend by name."""

Results = Generator[Any, None, None]
"""Results of a task as they finish."""

Start = Callable[[Callable[[str], Any], Sequence[str]], Results]
"""Maps a picklable task over keys: results as they finish, in any order."""


@contextmanager
def workers(backend: Backend, num_workers: int) -> Iterator[Start]:
    """Have processes to map tasks in, inside the scope alone."""
    with _loky() if backend == "process" else _ray(num_workers) as options:
        yield lambda task, keys: _map(task, keys, n_jobs=num_workers, **options)


def _map(task: Callable[[str], Any], keys: Sequence[str], **options: Any) -> Results:  # noqa: ANN401 (joblib's)
    from joblib import Parallel, delayed

    # max_nbytes=None: rows are small, and arrays inside of the task are not put into files behind its back
    parallel = Parallel(return_as="generator_unordered", batch_size=1, max_nbytes=None, **options)
    results = parallel(delayed(task)(key) for key in keys)
    try:
        for result in results:  # noqa: UP028 (`yield from` would close `results` out of reach of what follows)
            yield result
    finally:
        with warnings.catch_warnings():  # of cells in flight that are lost, which on the way out is meant
            warnings.simplefilter("ignore")
            results.close()


@contextmanager
def _loky() -> Iterator[dict[str, Any]]:
    from joblib import parallel_config
    from joblib.externals.loky import get_reusable_executor

    try:
        with parallel_config(backend="loky", inner_max_num_threads=1):
            yield {}
    finally:  # joblib would keep idle workers, and their memory, for minutes
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


@contextmanager
def _ray(num_workers: int) -> Iterator[dict[str, Any]]:
    ray = import_ray()
    from ray.util.joblib.ray_backend import RayBackend

    started = not ray.is_initialized()
    if started:
        _start_ray(ray, num_workers)
    try:
        # Ray's pool asks for no processor, and all of its workers would be put on the machine that asks
        backend = RayBackend(ray_remote_args={"num_cpus": 1, "scheduling_strategy": "SPREAD"})
        backend.supports_return_generator = True  # Ray's pool calls back as results come; joblib asks its own pool
        yield {"backend": backend}
    finally:
        if started:
            ray.shutdown()


def _start_ray(ray: Any, num_workers: int) -> None:  # noqa: ANN401 (a module)
    """Join the cluster that is running, or start one inside this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(address="local", num_cpus=num_workers, include_dashboard=False, **quiet)


def import_ray() -> Any:  # noqa: ANN401 (a module)
    """Return the module ``ray``, or raise what to install."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise OptionError(
            "run_cells()",
            "`backend`: Ray is not installed",
            expected="the package ray",
            got="'ray' without it",
            fix="pip install 'latentpg[ray]', or --backend process",
        ) from None


def has_ended(error: Exception) -> bool:
    """Tell whether an exception of the machinery means that a worker ended before its task."""
    return any("Terminated" in c.__name__ or "ActorDied" in c.__name__ for c in type(error).__mro__)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one torch thread: for networks this small more of them contend, and times would say nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_watched: set[int] = set()  # the parents that this worker watches already


def prepare_worker(parent: int) -> None:
    """Compute on one thread, leave Ctrl-C to the parent, and end when the parent has been killed."""
    torch.set_num_threads(1)
    if parent in _watched or os.getpid() == parent:
        return
    _watched.add(parent)
    gc.freeze()  # loky collects garbage every second: all that is imported would be looked through each time
    with suppress(ValueError):  # only a main thread may choose
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() == parent:  # the parent of a Ray worker is its cluster, which ends its workers itself
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
