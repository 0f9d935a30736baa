"""What ``latentpg train``, ``evaluate`` and ``resume`` do, print and return as exit status."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

import tyro
from rich.console import Console

from latentpg.envs.known_modes import KNOWN_MODES
from latentpg.errors import OptionError
from latentpg.learners.workers import TIMEOUT
from latentpg.numerics.devices import DEVICES, checked_device
from latentpg.programs import LatentPolicy
from latentpg.runs import write_json
from latentpg.studies.execute import check_workers
from latentpg.studies.workers import Backend
from latentpg.training.config import TrainingConfig, resolve
from latentpg.training.evaluate import evaluate
from latentpg.training.folders import begin_run, open_run, refused_change, seed_folder
from latentpg.training.loop import Outcome, train
from latentpg.training.options import changed_options, check_flags, parse_train
from latentpg.training.place import Place, check_not_launched, placed
from latentpg.training.preparing import execute_of, latent_of, prepared
from latentpg.training.progress import Show, progress, unseen
from latentpg.training.saving import CHECKPOINTS, load
from latentpg.training.seeds import draw_seeds, go_on, run_seeds
from latentpg.training.signals import EXIT_OF_SIGNAL, stopping
from latentpg.training.video import check_films, film_episodes

_Number = TypeVar("_Number")

RESUME_HELP = """usage: latentpg resume RUN [OPTIONS]

Go on with a run, or with all runs of a folder of several seeds, from the newest whole checkpoint.
Options of the run may be repeated, and none may differ from what the run began with.

  --trust-env      let an environment id module:Env import that module
  --num-workers N  processes in which runs of several seeds go on
  --backend NAME   where those are: process, ray or serial
  --device NAME    cpu, or cuda: where policies and rows are
  --group-timeout S
                   seconds that the workers of torchrun wait for each other
  --worker-timeout S
                   seconds within which workers of async environments must answer, if not as many as before
  -h, --help       print this"""
"""What ``latentpg resume --help`` prints."""


def train_command(words: Sequence[str]) -> int:
    """Train, and return the exit status: 0, 130 after Ctrl-C or 143 after SIGTERM."""
    asked = parse_train(words)
    config = asked.config
    check_workers(asked.num_workers, asked.backend)
    if asked.seeds is not None:
        check_not_launched("latentpg train --seeds")
        with prepared(config, begins=True, place=Place(device=checked_device(asked.device))):
            pass  # a mistake shows here, and leaves nothing behind
        folder = begin_run(config, out=asked.out, seeds=asked.seeds)
        return _run_seeds(config, asked.seeds, folder, asked.num_workers, asked.backend, asked.device)
    with placed(asked.device, timeout=asked.group_timeout) as place, stopping(say=place.saying(_say)) as stop:
        with prepared(config, begins=True, place=place) as built:
            folder = begin_run(config, out=asked.out) if place.writes else Path()
            with progress(config.run.total_timesteps, console=_errors()) if place.writes else unshown() as show:
                outcome = train(config, built, folder, show=show, stop=stop)
        return _finish(config, folder, outcome) if place.writes else exit_of(outcome)


def resume_command(words: Sequence[str]) -> int:
    """Go on with a run from its newest whole checkpoint, with the options it has."""
    if {"-h", "--help"} & {*words}:
        print(RESUME_HELP)
        return 0
    path, rest = _folder_of("latentpg resume", words)
    trusted, rest = _take_switch(rest, "--trust-env")
    workers, rest = take_option(rest, "--num-workers", int)
    num_workers = 1 if workers is None else workers
    timeout, rest = take_option(rest, "--worker-timeout", float)
    backend, rest = take_option(rest, "--backend", str)
    device, rest = take_option(rest, "--device", str)
    patience, rest = take_option(rest, "--group-timeout", float)
    run = open_run(path, trusted=trusted)
    if rest and (differs := changed_options(rest, run.config)):
        raise refused_change(differs)
    config = run.config if timeout is None else resolve({**run.config.flat(), "worker_timeout": timeout})
    if run.seeds is not None:
        check_not_launched("latentpg resume of several seeds")
        check_workers(num_workers, backend or "process")
        checked_device(device or "cpu")
        return _run_seeds(
            config, run.seeds, run.path, num_workers, cast(Backend, backend or "process"), device or "cpu"
        )
    with placed(device or "cpu", timeout=patience or TIMEOUT) as place, stopping(say=place.saying(_say)) as stop:
        saved = load(run.path, "last", say=place.saying(_say))
        shown = progress(config.run.total_timesteps, console=_errors(), done=saved.step) if place.writes else unshown()
        with shown as show:
            outcome = go_on(config, run.path, saved, show=show, stop=stop, place=place)
        return _finish(config, run.path, outcome) if place.writes else exit_of(outcome)


@dataclass(frozen=True)
class EvaluateOptions:
    """Play whole episodes with the policy of a run, and print the mean return with its 95 % interval."""

    checkpoint: Annotated[Literal["best", "last"], tyro.conf.arg(help="Which of the run's checkpoints.")] = "last"
    episodes: Annotated[int, tyro.conf.arg(help="Whole episodes.")] = 100
    acting: Annotated[
        Literal["stochastic", "decoder-mean"],
        tyro.conf.arg(help="The policy itself, or its decoder's mean at a sampled z."),
    ] = "stochastic"
    seed: Annotated[int, tyro.conf.arg(help="Of this evaluation; training and its evaluations use others.")] = 0
    video: Annotated[bool, tyro.conf.arg(help="Film episodes too, as animated GIFs in the run's folder.")] = False
    video_episodes: Annotated[int, tyro.conf.arg(help="How many.")] = 1
    trust_env: Annotated[bool, tyro.conf.arg(help="Let an environment id module:Env import that module.")] = False
    device: Annotated[Literal[DEVICES], tyro.conf.arg(help="Where the policy is; environments stay.")] = "cpu"  # type: ignore[valid-type]


def evaluate_command(words: Sequence[str]) -> int:
    """Evaluate a run's policy, print what was found and keep it in the run's folder."""
    if words and words[0] in ("-h", "--help"):
        tyro.cli(EvaluateOptions, args=["--help"], prog="latentpg evaluate RUN")
    check_not_launched("latentpg evaluate")
    path, rest = _folder_of("latentpg evaluate", words)
    check_flags("latentpg evaluate", rest, [each.name for each in fields(EvaluateOptions)])
    options = tyro.cli(EvaluateOptions, args=rest, prog="latentpg evaluate RUN")
    if options.episodes < 4 or options.seed < 0:
        raise OptionError(
            "latentpg evaluate",
            "`--episodes` or `--seed`",
            expected="four episodes or more, which an interval needs, and a seed >= 0",
            got=f"{options.episodes} and {options.seed}",
        )
    if options.video_episodes < 1:
        raise OptionError(
            "latentpg evaluate", "`--video-episodes`", expected="an integer >= 1", got=repr(options.video_episodes)
        )
    run = open_run(path, trusted=options.trust_env)
    if options.video:
        check_films(run.config.selection.env)  # before anything is evaluated or written
    if run.seeds is None:
        _evaluate(run.config, run.path, options)
    for seed in run.seeds or ():
        print(f"seed {seed}: ", end="")
        _evaluate(run.config.with_seed(seed), seed_folder(run.path, seed), options)
    return 0


def _evaluate(config: TrainingConfig, folder: Path, options: EvaluateOptions) -> None:
    saved = load(folder, options.checkpoint, say=_say)
    with prepared(config, place=Place(device=checked_device(options.device))) as built:
        built.restore_policy(saved.state)
        found = evaluate(
            built.evaluation_envs,
            built.policy,
            num_episodes=options.episodes,
            seed=options.seed,
            acting=options.acting,
            latent=latent_of(config),
            execute=execute_of(config),
            modes=KNOWN_MODES.get(config.selection.env),
        )
        films = _film(config, folder, options, built.policy, saved.step) if options.video else []
    mean = found.mean
    place = folder / "evaluations"
    place.mkdir(exist_ok=True)
    file = place / f"step-{saved.step}-{options.acting}-{options.episodes}-seed-{options.seed}.json"
    told = {"steps": saved.step, "acting": options.acting, "seed": options.seed, **found.metrics()}
    write_json(file, {**told, "returns": found.returns.tolist(), "lengths": found.lengths.tolist()})
    print(
        f"mean return {mean.value:.2f}, 95 % interval {mean.low:.2f} to {mean.high:.2f}, over {options.episodes} "
        f"episodes, {options.acting}, after {saved.step} steps"
    )
    print(f"written to {file}")
    for film, reward in films:
        print(f"film    {film}  (return {reward:.2f})")


def _film(
    config: TrainingConfig, folder: Path, options: EvaluateOptions, policy: LatentPolicy, step: int
) -> list[tuple[Path, float]]:
    """Film episodes beside the evaluation, whose numbers do not hang on it."""
    return film_episodes(
        config.selection.env,
        policy,
        lambda episode: folder / "videos" / f"step-{step}-{options.acting}-seed-{options.seed}-{episode}.gif",
        num_episodes=options.video_episodes,
        seed=options.seed,
        acting=options.acting,
        latent=latent_of(config),
        execute=execute_of(config),
    )


def _run_seeds(
    config: TrainingConfig, seeds: Sequence[int], folder: Path, num_workers: int, backend: Backend, device: str
) -> int:
    stopped = run_seeds(
        config,
        seeds,
        folder,
        num_workers=num_workers,
        backend=backend,
        device=device,
        console=_errors(),
        say=_say,
    )
    if stopped is not None:
        print(f"stopped; to go on: {shlex.join(['latentpg', 'resume', str(folder)])}")
        return EXIT_OF_SIGNAL + stopped
    for path in draw_seeds(config, seeds, folder):
        print(f"figure  {path}")
    print(f"run     {folder}")
    return 0


def _finish(config: TrainingConfig, folder: Path, outcome: Outcome) -> int:
    rate = outcome.steps / outcome.seconds if outcome.seconds else float("nan")
    total = config.run.total_timesteps
    print(
        f"{'finished' if outcome.steps >= total else 'stopped'} after {outcome.steps} of {total} steps, "
        f"{outcome.updates} updates, {outcome.seconds:.0f} s, {rate:.0f} steps/s"
    )
    if outcome.evaluation:
        found = outcome.evaluation
        print(
            f"mean return {found['eval/mean_reward']:.1f} "
            f"({found['eval/mean_reward_low']:.1f} to {found['eval/mean_reward_high']:.1f}, 95 %) "
            f"at {int(found['time/total_timesteps'])} steps; best {outcome.best:.1f} at {outcome.best_steps}"
        )
    if outcome.inexact:
        print(f"exact_resume: false, because {outcome.inexact}")
    for file in outcome.files:
        print(f"{'metrics' if file.stem == 'metrics' else 'figure '} {file}")  # not through rich, which breaks paths
    print(f"saved   {folder / CHECKPOINTS}")
    print(f"run     {folder}")
    word = "resume" if outcome.steps < total else "evaluate"
    print(f"{'to go on: ' if word == 'resume' else 'next: '}{shlex.join(['latentpg', word, str(folder)])}")
    return exit_of(outcome)


def exit_of(outcome: Outcome) -> int:
    """Return the exit status of a run that has ended."""
    return 0 if outcome.signal is None else EXIT_OF_SIGNAL + outcome.signal


@contextmanager
def unshown() -> Iterator[Show]:
    """Show nothing, as all workers do but the first."""
    yield unseen


def _folder_of(where: str, words: Sequence[str]) -> tuple[Path, list[str]]:
    match [*words]:
        case [name, *rest] if not name.startswith("-"):
            return Path(name), rest
    raise OptionError(
        where,
        "the run's folder comes first",
        expected=f"{where} RUN, with RUN the folder of an earlier `latentpg train`",
        got=shlex.join([where, *words]),
    )


def _take_switch(words: Sequence[str], switch: str) -> tuple[bool, list[str]]:
    return switch in words, [word for word in words if word != switch]


def take_option(words: Sequence[str], option: str, kind: Callable[[str], _Number]) -> tuple[_Number | None, list[str]]:
    """Take an option and its number out of the words; None if it is not there."""
    for place, word in enumerate([*words]):
        name, equals, given = word.partition("=")
        if name.replace("_", "-") != option:
            continue
        end = place + (1 if equals else 2)
        text = given if equals else " ".join(words[place + 1 : end])
        try:
            return kind(text), [*words[:place], *words[end:]]
        except ValueError:
            expected = "an integer" if kind is int else "a number"
            raise OptionError("latentpg resume", f"`{option}`", expected=expected, got=repr(text)) from None
    return None, [*words]


def _errors() -> Console:
    return Console(stderr=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
