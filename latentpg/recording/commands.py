"""What ``latentpg record`` does, prints and returns as exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import torch
import tyro
from gymnasium.vector import SyncVectorEnv, VectorEnv
from torch import nn

from latentpg.data import Demonstrations, save_npz
from latentpg.errors import OptionError
from latentpg.numerics.devices import DEVICES, checked_device
from latentpg.recording.experts import load_function, modes_of, shown_by_script
from latentpg.recording.playing import Recorded, Wanted, episodes_of_function, episodes_of_policy, record
from latentpg.recording.trained import load_expert
from latentpg.rollout import close_envs, make_envs
from latentpg.studies.workers import one_thread
from latentpg.training.config import check_trust
from latentpg.training.evaluate import ACTING
from latentpg.training.options import check_flags
from latentpg.training.place import check_not_launched

SCRIPT = "scripted"
"""The name of the expert that comes with an environment."""


@dataclass(frozen=True)
class RecordOptions:
    """Record demonstrations of an environment by a scripted or trained expert, as an .npz that `load_npz` reads."""

    env: Annotated[str, tyro.conf.arg(help="Id of a Gymnasium environment.")]
    out: Annotated[Path, tyro.conf.arg(help="The .npz to write.")]
    expert: Annotated[
        str, tyro.conf.arg(help='"scripted", the folder of a run of train or imitate, or a function module:make.')
    ] = SCRIPT
    episodes: Annotated[int | None, tyro.conf.arg(help="How many to keep; 100 unless told.")] = None
    episodes_per_mode: Annotated[int | None, tyro.conf.arg(help="Instead, for a script: how many of each mode.")] = None
    min_return: Annotated[float | None, tyro.conf.arg(help="Keep episodes of this undiscounted return or more.")] = None
    max_episodes: Annotated[
        int | None, tyro.conf.arg(help="Give up after playing so many; ten for each that is wanted unless told.")
    ] = None
    acting: Annotated[
        Literal["stochastic", "decoder-mean"],
        tyro.conf.arg(help="A run's policy itself, or its decoder's mean at a sampled z."),
    ] = "stochastic"
    checkpoint: Annotated[Literal["best", "last"], tyro.conf.arg(help="Which of a run's checkpoints.")] = "last"
    seed: Annotated[int, tyro.conf.arg(help="Of everything that is drawn.")] = 0
    num_envs: Annotated[int, tyro.conf.arg(help="Environments that a run's policy plays side by side.")] = 8
    overwrite: Annotated[bool, tyro.conf.arg(help="Write over a file that is there.")] = False
    trust_env: Annotated[bool, tyro.conf.arg(help="Let an environment id module:Env import that module.")] = False
    trust_expert: Annotated[bool, tyro.conf.arg(help="Let an expert module:make import that module.")] = False
    device: Annotated[Literal[DEVICES], tyro.conf.arg(help="Where a run's policy is; environments stay.")] = "cpu"  # type: ignore[valid-type]


def record_command(words: Sequence[str]) -> int:
    """Record, write the file, say what is in it, and return the exit status."""
    if not {"-h", "--help"} & {*words}:
        check_flags("latentpg record", words, [each.name for each in fields(RecordOptions)])
        _check_required(words)
    options = tyro.cli(RecordOptions, args=words, prog="latentpg record")
    _check(options)
    recorded = recorded_by(options)
    save_npz(options.out, recorded.demonstrations)
    for line in _told(recorded):
        print(line)
    print(f"written to {options.out}")
    return 0


def recorded_by(options: RecordOptions) -> Recorded:
    """Record what the options ask for."""
    check_trust(options.env, trusted=options.trust_env)
    if options.expert == SCRIPT:
        return _by_script(options)
    episodes = 100 if options.episodes is None else options.episodes
    wanted = Wanted(episodes, options.seed, options.min_return, options.max_episodes)
    source = f"{options.expert} in {options.env}, seed {options.seed}"
    folder = Path(options.expert)
    if _is_function(options.expert):
        make = load_function(options.expert, trusted=options.trust_expert)
        with _envs(options.env, 1) as envs:
            # the vector environment is there for its checks of the id; one copy is played by itself
            assert isinstance(envs, SyncVectorEnv)
            alone: gymnasium.Env[Any, Any] = envs.envs[0]
            return _with_modes(options.env, record(episodes_of_function(alone, make, wanted), wanted, source=source))
    with one_thread(), _envs(options.env, min(options.num_envs, episodes)) as envs:
        expert = load_expert(folder, envs, which=options.checkpoint, trusted=options.trust_env, say=_say)
        if isinstance(expert.policy, nn.Module):
            expert.policy.to(checked_device(options.device))
        if options.acting != "stochastic" and expert.latent != "step":
            raise OptionError(
                "latentpg record",
                f"a latent that is held for {'an episode' if expert.latent == 'episode' else 'a chunk'}",
                expected="--acting stochastic: the policy as it acts",
                got=f"--acting {options.acting}",
            )
        played = episodes_of_policy(
            envs,
            expert.policy,
            wanted,
            latent=expert.latent,
            execute=expert.execute,
            acting=ACTING[options.acting],
        )
        return _with_modes(options.env, record(played, wanted, source=source))


def _is_function(expert: str) -> bool:
    return ":" in expert and not Path(expert).exists()


def _by_script(options: RecordOptions) -> Recorded:
    idle = [name for name in ("min_return", "max_episodes") if getattr(options, name) is not None]
    if idle:
        raise OptionError(
            "latentpg record",
            f"`--{idle[0].replace('_', '-')}` with a script, which keeps what succeeds and plays until it does",
            expected="--episodes or --episodes-per-mode",
            got=repr(getattr(options, idle[0])),
        )
    episodes = 100 if options.episodes is None and options.episodes_per_mode is None else options.episodes
    for name, value in (("episodes", episodes), ("episodes-per-mode", options.episodes_per_mode)):
        if value is not None and value < 1:
            raise OptionError("latentpg record", f"`--{name}`", expected="an integer >= 1", got=repr(value))
    shown = shown_by_script(options.env, episodes=episodes, per_mode=options.episodes_per_mode, seed=options.seed)
    return Recorded(shown, torch.ones(0, dtype=torch.float64))


def _with_modes(env_id: str, recorded: Recorded) -> Recorded:
    """Add the modes where the environment's can be told from what was seen, and the expert told none."""
    shown = recorded.demonstrations
    if shown.mode is not None:
        return recorded
    return replace(recorded, demonstrations=replace(shown, mode=modes_of(env_id, shown.obs, shown.lengths)))


@contextmanager
def _envs(env_id: str, number: int) -> Iterator[VectorEnv[Any, Any, Any]]:
    envs = make_envs(env_id, number)
    try:
        yield envs
    finally:
        close_envs(envs)


def _check_required(words: Sequence[str]) -> None:
    names = [word.partition("=")[0].replace("_", "-") for word in words]
    for flag, example in (("--env", "latentpg/Avoiding-v0"), ("--out", "demos.npz")):
        if flag not in names:
            raise OptionError(
                "latentpg record", f"no `{flag}`", expected="--env and --out at least", fix=f"{flag} {example}"
            )


def _check(options: RecordOptions) -> None:
    """Refuse what cannot be done before anything is played."""
    where, out = "latentpg record", options.out
    check_not_launched(where)
    if options.device != "cpu" and (options.expert == SCRIPT or _is_function(options.expert)):
        raise OptionError(
            where,
            "`--device` of an expert that computes with no network of ours",
            expected="--expert RUN, or no --device",
            got=f"--expert {options.expert}",
        )
    checked_device(options.device)
    if options.episodes is not None and options.episodes_per_mode is not None:
        raise OptionError(
            where,
            "`--episodes` and `--episodes-per-mode`",
            expected="one of them",
            got=f"{options.episodes} and {options.episodes_per_mode}",
        )
    if options.episodes_per_mode is not None and options.expert != SCRIPT:
        raise OptionError(
            where,
            "`--episodes-per-mode` of an expert that does not choose its mode",
            expected="--episodes, or --expert scripted",
            got=f"--expert {options.expert}",
        )
    if options.seed < 0 or options.num_envs < 1:
        raise OptionError(
            where,
            "`--seed` or `--num-envs`",
            expected="a seed >= 0, and one environment or more",
            got=f"{options.seed} and {options.num_envs}",
        )
    if out.suffix != ".npz" or not out.expanduser().parent.is_dir():
        raise OptionError(where, "`--out`", expected="FILE.npz in a folder that is there", got=str(out))
    if out.expanduser().is_dir() or (out.expanduser().exists() and not options.overwrite):
        raise OptionError(where, f"{out} is there already", expected="a new file", fix="--overwrite, or another --out")


def _told(recorded: Recorded) -> list[str]:
    shown, returns = recorded.demonstrations, recorded.returns
    lines = [f"{shown.num_episodes} episodes of {_span(shown)} steps, {shown.num_rows} in all; {shown.source}"]
    if len(returns):
        lines.append(
            f"kept of {len(returns)} that were played, whose returns were {float(returns.mean()):.4g} on average, "
            f"{float(returns.min()):.4g} to {float(returns.max()):.4g}"
        )
    if shown.mode is not None:
        counts = torch.bincount(shown.mode)
        lines.append(f"{int((counts > 0).sum())} modes, {counts[counts > 0].tolist()} episodes of each")
    else:
        lines.append("modes are not known")
    return lines


def _span(shown: Demonstrations) -> str:
    low, high = int(shown.lengths.min()), int(shown.lengths.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
