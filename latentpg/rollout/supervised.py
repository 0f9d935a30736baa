"""Environments in processes of their own, watched: whichever stops answering is named, and none is left behind.

Gymnasium's asynchronous environments wait without end for a worker that hangs, and tell of one that was killed by the
end of a pipe. Here every answer has a time limit, and a fault says which member it was, from which seed its episode
began and what was the last action it was given; then all workers are ended.
"""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from latentpg.envs import register_envs
from latentpg.errors import OptionError
from latentpg.rollout.faults import EnvironmentFault

WORKER_TIMEOUT = 60.0
"""Seconds within which every worker must answer."""

_WHERE = "environment worker"


class SupervisedVectorEnv(AsyncVectorEnv):
    """N environments in a process each, reset by the caller, whose every answer has a time limit.

    A worker that is killed, hangs, raises, or cannot be started is an
    :class:`~latentpg.rollout.faults.EnvironmentFault` within ``timeout`` seconds, and all workers are ended by then.
    """

    def __init__(
        self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], *, timeout: float | int = WORKER_TIMEOUT
    ) -> None:
        """Start a process for each maker of an environment."""
        if not 0 < timeout < float("inf"):
            raise OptionError("SupervisedVectorEnv()", "`timeout`", expected="seconds > 0", got=repr(timeout))
        self.timeout = float(timeout)
        self._seeds: list[int | None] = [None] * len(makers)
        self._actions: Any = None
        self._silent: list[int] = []
        self.parent_pipes, self.processes = [], []
        try:
            with self._ended_when_late():
                super().__init__(makers, autoreset_mode=AutoresetMode.DISABLED)
        except gymnasium.error.Error:  # no such environment, or a package that it needs: the caller's to tell
            end_workers(self.processes)
            raise
        except Exception as error:
            raise self._fault("cannot be started", error) from error

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401 (Gymnasium's own types)
        """Reset the members in ``options["reset_mask"]``, or all, within the time limit."""
        self._note_seeds(seed, options)
        return self._answer(
            lambda: self.reset_async(seed=seed, options=options), lambda: self.reset_wait(timeout=self.timeout)
        )

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401 (see above)
        """Step every member within the time limit."""
        self._actions = actions
        return self._answer(lambda: self.step_async(actions), lambda: self.step_wait(timeout=self.timeout))

    def close(self, **kwargs: Any) -> None:  # noqa: ANN401 (Gymnasium's signature)
        """End the workers: those that are idle by asking, the others at once. A second call does nothing."""
        if self.closed:
            return
        idle = self._state is AsyncState.DEFAULT and all(worker.is_alive() for worker in self.processes)
        if idle and not kwargs.get("terminate"):
            with self._ended_when_late():
                try:
                    super().close(**kwargs)
                except (EOFError, ConnectionError):
                    self._end()
        else:
            self._end()

    def _answer(self, ask: Callable[[], Any], receive: Callable[[], Any]) -> Any:  # noqa: ANN401 (what the environments give)
        self._assert_is_running()
        try:
            ask()
            return receive()
        except multiprocessing.TimeoutError as error:
            self._silent = [n for n, pipe in enumerate(self.parent_pipes) if pipe is not None and not pipe.poll(0)]
            raise self._fault(f"gave no answer within {self.timeout:g} seconds", error) from error
        except (EOFError, ConnectionError) as error:
            raise self._fault("is gone", error) from error
        except gymnasium.error.Error:
            raise
        except Exception as error:  # whatever the environment raised, in its own process
            raise self._fault("raised", error) from error

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """Raise what a worker raised, without Gymnasium's warnings besides: the fault says it all."""
        every = list(successes)
        if all(every):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            super()._raise_if_errors(every)

    @contextmanager
    def _ended_when_late(self) -> Iterator[None]:
        """End every worker that has not answered when the time is over; whoever waits for it then reads the end."""

        def end() -> None:
            self._silent = [n for n, pipe in enumerate(self.parent_pipes) if pipe is not None and not pipe.poll(0)]
            for worker in self.processes:  # whoever waits takes leave of them: two who do would miss each other
                worker.kill()

        watch = threading.Timer(self.timeout, end)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _fault(self, what: str, error: Exception) -> EnvironmentFault:
        """End all workers, and say which member it was and what it was doing."""
        member = self._culprit()
        if self._silent:
            what = f"gave no answer within {self.timeout:g} seconds"
        code = None if member is None or self._silent else self.processes[member].exitcode
        seed = "?" if member is None else self._seeds[member]
        action = None if member is None or self._actions is None else np.asarray(self._actions)[member].tolist()
        told = str(error) or ("no message" if code is None else f"exit code {code}")
        self._end()
        return EnvironmentFault(
            _WHERE,
            f"the worker process of member {'?' if member is None else member} {what}; all workers have been ended",
            expected=f"an answer from each of {len(self._seeds)} members within {self.timeout:g} seconds",
            got=f"{type(error).__name__}: {told}; its episode began with seed {seed}, its last action was {action}",
            fix='make_envs(..., vectorization_mode="sync") shows what an environment does; a slow one needs a longer '
            "`timeout`",
        )

    def _culprit(self) -> int | None:
        if self._silent:  # answers are taken in order: the first of these may have been heard, the last was not
            return self._silent[-1]
        raised = [n for n, pipe in enumerate(self.parent_pipes) if pipe is None]
        if raised:
            return raised[-1]
        ended = wait([worker.sentinel for worker in self.processes], timeout=1.0) if self.processes else []
        return next((n for n, worker in enumerate(self.processes) if worker.sentinel in ended), None)

    def _end(self) -> None:
        end_workers(self.processes)
        self._state = AsyncState.DEFAULT  # nobody is left to answer what is pending
        if not self.closed and hasattr(self, "error_queue"):
            super().close(terminate=True)

    def _note_seeds(self, seed: Any, options: dict[str, Any] | None) -> None:  # noqa: ANN401 (see above)
        every = list(seed) if isinstance(seed, list | tuple) else [seed] * len(self._seeds)
        mask = (options or {}).get("reset_mask")
        for member in range(len(self._seeds)) if mask is None else np.flatnonzero(mask).tolist():
            self._seeds[member] = every[member] if member < len(every) else None


def end_workers(processes: Sequence[Any]) -> None:
    """Kill processes and take leave of them; those that have ended already are no harm."""
    for worker in processes:
        if worker.is_alive():
            worker.kill()
    for worker in processes:
        worker.join(timeout=5.0)


def supervise(env_id: str, num_envs: int, *, timeout: float | int = WORKER_TIMEOUT) -> SupervisedVectorEnv:
    """Start N processes with an environment each, by its registered id.

    >>> envs = supervise("CartPole-v1", 2)
    >>> envs.reset(seed=[1, 2])[0].shape
    (2, 4)
    >>> envs.close()
    >>> envs.close()  # does no harm
    """
    return SupervisedVectorEnv([partial(_make, env_id)] * num_envs, timeout=timeout)


def _make(env_id: str) -> gymnasium.Env[Any, Any]:
    register_envs()  # a process that was not forked knows of none of ours
    return gymnasium.make(env_id)
