"""Making vector environments that are reset by us, and ending them.

``autoreset_mode`` DISABLED: the observation after an episode's last step is then the true one, there are no dummy rows,
and every reset has a seed of its own. Environments that come vectorised by nature reset themselves, most of them, in
the step after an episode's last one (NEXT_STEP); they serve step rollouts, where that step's row is masked, and are
refused where whole episodes must start in one state.
"""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from latentpg.envs import register_envs
from latentpg.errors import LatentPGError, OptionError, did_you_mean
from latentpg.rollout.faults import EnvironmentFault
from latentpg.rollout.supervised import WORKER_TIMEOUT, SupervisedVectorEnv, end_workers, supervise

VECTORIZATION_MODES = ("sync", "async", "native")
"""One after the other in this process, each in a process of its own, or by the environment's own vectorised class."""

LARGEST_SEED = 2**31 - 1
"""Seeds of environment resets are below this, so that every environment takes them."""


def make_envs(
    env_id: str, num_envs: int, *, vectorization_mode: str = "sync", timeout: float | int = WORKER_TIMEOUT
) -> VectorEnv[Any, Any, Any]:
    """Make N copies of a registered environment, those of :mod:`latentpg.envs` among them.

    ``"sync"`` steps them one after the other, ``"async"`` in a process each, which must answer within ``timeout``
    seconds; both are reset by the caller (``autoreset_mode`` DISABLED). ``"native"`` takes the vectorised class that
    the environment brings, which resets by rules of its own unless it is one of ours: see the module's docstring for
    what it serves.

    >>> make_envs("CartPole-v1", 2).num_envs
    2
    >>> make_envs("CartPole-v1", 2, vectorization_mode="native").metadata["autoreset_mode"]
    <AutoresetMode.NEXT_STEP: 'NextStep'>
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise OptionError("make_envs()", "`num_envs`", expected="an integer >= 1", got=repr(num_envs), fix="num_envs=8")
    if vectorization_mode not in VECTORIZATION_MODES:
        raise OptionError(
            "make_envs()",
            "`vectorization_mode`",
            expected=" or ".join(f'"{mode}"' for mode in VECTORIZATION_MODES),
            got=repr(vectorization_mode),
            fix=did_you_mean(vectorization_mode, VECTORIZATION_MODES),
        )
    register_envs()
    try:
        if vectorization_mode == "native":
            return _make_native(env_id, num_envs)
        if vectorization_mode == "async":
            return supervise(env_id, num_envs, timeout=timeout)
        return gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        )
    except gymnasium.error.DependencyNotInstalled as error:
        raise OptionError(
            "make_envs()",
            f"environment {env_id} needs a package that is not installed",
            got=str(error),
            fix="install what the message names, or choose another environment",
        ) from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise OptionError(
            "make_envs()",
            "unknown environment",
            expected="the name of an environment registered with Gymnasium, such as CartPole-v1",
            got=repr(env_id),
            fix=_nearest_environment(env_id),
        ) from error
    except LatentPGError:
        raise
    except Exception as error:  # whatever the environment's own constructor raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise EnvironmentFault(
            "make_envs()",
            f"environment {env_id!r:.80} cannot be made",
            expected=f"{num_envs} of it",
            got=f"{type(error).__name__}: {error!s:.200}",
            likely=f"raised at {place.filename}:{place.lineno}, in {place.name}",
        ) from error


def resets_are_ours(envs: VectorEnv[Any, Any, Any]) -> bool:
    """Tell whether a vector environment waits for its caller to reset a member whose episode ended.

    >>> resets_are_ours(make_envs("CartPole-v1", 2))
    True
    """
    return envs.metadata.get("autoreset_mode") == AutoresetMode.DISABLED


def require_our_resets(where: str, envs: VectorEnv[Any, Any, Any]) -> None:
    """Refuse environments that reset themselves."""
    if resets_are_ours(envs):
        return
    raise OptionError(
        where,
        "the environments reset themselves, so the observation after an episode's last step would be lost, and members "
        "cannot be started in a state of the caller's choice",
        expected="a vector environment made with autoreset_mode=AutoresetMode.DISABLED",
        got=f"autoreset_mode={envs.metadata.get('autoreset_mode')}",
        fix="make_envs(env_id, num_envs), or SyncVectorEnv(..., autoreset_mode=AutoresetMode.DISABLED)",
    )


def close_envs(envs: VectorEnv[Any, Any, Any]) -> None:
    """Close environments, and end worker processes that no longer answer.

    Gymnasium's own ``close`` waits for an answer from each worker, for ever if one has been stopped or has a step
    pending. Workers are therefore ended first unless all of them are alive and idle.
    """
    bare = envs.unwrapped
    if isinstance(bare, AsyncVectorEnv) and not isinstance(bare, SupervisedVectorEnv) and not bare.closed:
        idle = bare._state is AsyncState.DEFAULT and all(worker.is_alive() for worker in bare.processes)
        if not idle:
            end_workers(bare.processes)
            bare._state = AsyncState.DEFAULT  # nobody is left to answer what is pending
            envs.close(terminate=True)
            return
    envs.close()


def _make_native(env_id: str, num_envs: int) -> VectorEnv[Any, Any, Any]:
    if gymnasium.spec(env_id).vector_entry_point is None:
        raise OptionError(
            "make_envs()",
            f"environment {env_id} brings no vectorised class of its own",
            expected="an environment registered with a `vector_entry_point`, such as CartPole-v1",
            got='vectorization_mode="native"',
            fix='vectorization_mode="sync"',
        )
    envs = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point")
    mode = envs.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP):
        envs.close()
        raise OptionError(
            "make_envs()",
            f"the vectorised class of {env_id} resets in a way that loses an episode's last observation",
            expected=f"{AutoresetMode.DISABLED} or {AutoresetMode.NEXT_STEP}",
            got=f"autoreset_mode={mode}",
            fix='vectorization_mode="sync"',
        )
    return envs


def _nearest_environment(env_id: str) -> str:
    package, slash, _ = env_id.partition("/")
    if slash and ":" not in env_id and not any(known.startswith(f"{package}/") for known in gymnasium.registry):
        # packages register their environments when they are imported, and nothing here imports what an id names
        return f"{package}:{env_id}, which imports the package {package} first; on a command line with --trust-env"
    suggestion = did_you_mean(env_id, gymnasium.registry)
    is_whole_list = suggestion.startswith("choose one of")
    return "gymnasium.pprint_registry() lists what there is" if is_whole_list else suggestion
