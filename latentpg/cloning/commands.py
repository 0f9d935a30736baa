"""What ``latentpg imitate`` does, and ``evaluate`` and ``resume`` on what it left; what they print and return."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import tyro
from rich.console import Console
from torch import nn

from latentpg.cloning.acting import check_acting
from latentpg.cloning.config import CloningConfig
from latentpg.cloning.folders import begin_run, check_same, open_run
from latentpg.cloning.loop import Cloned, clone
from latentpg.cloning.measures import measure
from latentpg.cloning.options import changed_options, parse_imitate
from latentpg.cloning.outcomes import act_out
from latentpg.cloning.parts import Acts
from latentpg.cloning.preparing import Prepared, prepared
from latentpg.cloning.seeds import run_seeds, summarize
from latentpg.cloning.telling import lines_of, outcome_lines, outcome_of, result_of
from latentpg.errors import OptionError
from latentpg.numerics.devices import DEVICES, checked_device
from latentpg.runs import write_json
from latentpg.studies.execute import check_workers
from latentpg.studies.workers import Backend
from latentpg.training.cloned import is_cloning, read_cloned
from latentpg.training.commands import evaluate_command, resume_command, take_option
from latentpg.training.folders import refused_change, seed_folder
from latentpg.training.options import check_flags
from latentpg.training.place import check_not_launched
from latentpg.training.progress import progress
from latentpg.training.saving import CHECKPOINTS, load
from latentpg.training.signals import EXIT_OF_SIGNAL, stopping


def imitate_command(words: Sequence[str]) -> int:
    """Learn from demonstrations, and return the exit status: 0, 130 after Ctrl-C or 143 after SIGTERM."""
    asked = parse_imitate(words)
    check_not_launched("latentpg imitate")
    check_workers(asked.num_workers, asked.backend)
    config, device = asked.config, checked_device(asked.device)
    if asked.seeds is not None:
        with prepared(config, device=device):  # a mistake shows here, and leaves nothing behind
            pass
        folder = begin_run(config, out=asked.out, seeds=asked.seeds)
        return _run_seeds(config, asked.seeds, folder, device, asked.num_workers, asked.backend)
    with stopping(say=_say) as stop, prepared(config, device=device) as built:
        folder = begin_run(config, out=asked.out, built=built)
        total = built.config.fit.num_epochs * built.rows.size
        with progress(total, console=_errors(), unit="rows") as show:
            outcome = clone(built, folder, show=show, stop=stop)
        return _finish(built, folder, outcome)


def evaluate_run(words: Sequence[str]) -> int:
    """Evaluate the policy of a run, whichever command left it: training's, unless the folder is one of cloning."""
    return evaluate_cloned(words) if _names_cloning(words) else evaluate_command(words)


def resume_run(words: Sequence[str]) -> int:
    """Go on with a run, whichever command began it."""
    return resume_cloning(words) if _names_cloning(words) else resume_command(words)


def resume_cloning(words: Sequence[str]) -> int:
    """Go on with a run from its newest whole checkpoint, with the options it has."""
    check_not_launched("latentpg resume of a cloning run")
    path, rest = Path(words[0]), list(words[1:])
    name, rest = take_option(rest, "--device", str)
    workers, rest = take_option(rest, "--num-workers", int)
    backend, rest = take_option(rest, "--backend", str)
    device, num_workers = checked_device(name or "cpu"), 1 if workers is None else workers
    check_workers(num_workers, backend or "process")
    run = open_run(path, trusted="--trust-env" in rest)
    rest = [word for word in rest if word != "--trust-env"]
    if rest and (differs := changed_options(rest, run.config)):
        raise refused_change(differs)
    if run.seeds is not None:
        return _run_seeds(run.config, run.seeds, run.path, device, num_workers, cast(Backend, backend or "process"))
    saved = load(run.path, "last", say=_say)
    check_same(run.config, saved)
    with stopping(say=_say) as stop, prepared(run.config, device=device) as built:
        total = built.config.fit.num_epochs * built.rows.size
        with progress(total, console=_errors(), done=saved.step * built.rows.size, unit="rows") as show:
            outcome = clone(built, run.path, saved=saved, show=show, stop=stop)
        return _finish(built, run.path, outcome)


@dataclass(frozen=True)
class EvaluateCloned:
    """Play whole episodes with a cloned policy and measure it again: likelihood, use of the latent, behaviour."""

    checkpoint: Annotated[
        Literal["kept", "best", "last"], tyro.conf.arg(help="Which parameters: those the run handed on, or others.")
    ] = "kept"
    episodes: Annotated[int | None, tyro.conf.arg(help="Whole episodes; as many as the run played without it.")] = None
    acting: Annotated[
        Acts | None,
        tyro.conf.arg(
            help="The policy itself, its decoder's mean at a sampled z, or, of chunks, the average of what was "
            "predicted for a step under one latent; as the run did without it."
        ),
    ] = None
    seed: Annotated[int, tyro.conf.arg(help="Of this evaluation.")] = 1
    likelihood: Annotated[bool, tyro.conf.arg(help="Measure likelihood and latent too, not roll-outs alone.")] = True
    trust_env: Annotated[bool, tyro.conf.arg(help="Let an environment id module:Env import that module.")] = False
    device: Annotated[Literal[DEVICES], tyro.conf.arg(help="Where policy and rows are; environments stay.")] = "cpu"  # type: ignore[valid-type]


def evaluate_cloned(words: Sequence[str]) -> int:
    """Evaluate a cloned policy, print what was found and keep it in the run's folder."""
    check_not_launched("latentpg evaluate")
    path, rest = Path(words[0]), words[1:]
    check_flags("latentpg evaluate", rest, [each.name for each in fields(EvaluateCloned)], owner=lambda name: None)
    options = tyro.cli(EvaluateCloned, args=list(rest), prog="latentpg evaluate RUN")
    if (options.episodes is not None and options.episodes < 4) or options.seed < 0:
        raise OptionError(
            "latentpg evaluate",
            "`--episodes` or `--seed`",
            expected="four episodes or more, which an interval needs, and a seed >= 0",
            got=f"{options.episodes} and {options.seed}",
        )
    run = open_run(path, trusted=options.trust_env)
    if options.acting is not None:
        check_acting(run.config.policy, options.acting)
    if run.config.selection.env is None and not options.likelihood:
        raise OptionError(
            "latentpg evaluate", "there is no environment to act in", expected="--likelihood", got="--no-likelihood"
        )
    if run.seeds is None:
        _evaluate(run.config, run.path, options)
    for seed in run.seeds or ():
        print(f"seed {seed}:")
        folder = seed_folder(run.path, seed)
        _evaluate(open_run(folder, trusted=options.trust_env).config, folder, options)
    return 0


def _evaluate(config: CloningConfig, folder: Path, options: EvaluateCloned) -> None:
    acting = options.acting or config.run.acting
    number = config.run.rollouts if options.episodes is None else options.episodes
    if config.selection.env is not None:
        config = config.but(acting=acting, rollouts=number)
    which = None if options.checkpoint == "kept" else options.checkpoint
    with prepared(config, device=checked_device(options.device)) as built:
        assert isinstance(built.policy, nn.Module)
        built.policy.load_state_dict(dict(read_cloned(folder, which=which).tensors))
        if options.likelihood:
            measured = measure(built, seed=options.seed)
            lines, told = lines_of(measured), result_of(built, measured)
        else:
            outcome = act_out(built, seed=options.seed)
            assert outcome is not None
            lines, told = outcome_lines(outcome), {"rollouts": outcome_of(outcome)}
    place = folder / "evaluations"
    place.mkdir(exist_ok=True)
    kind = "measured" if options.likelihood else "played"
    file = place / f"{options.checkpoint}-{acting}-{number}-{kind}-seed-{options.seed}.json"
    write_json(file, {"checkpoint": options.checkpoint, "seed": options.seed, **told})
    print("\n".join(lines))
    print(f"written to {file}")


def _run_seeds(
    config: CloningConfig,
    seeds: Sequence[int],
    folder: Path,
    device: torch.device,
    num_workers: int,
    backend: Backend,
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
    for line in summarize(seeds, folder):
        print(line)
    print(f"run     {folder}")
    print(f"next: {shlex.join(['latentpg', 'evaluate', str(folder)])}")
    return 0


def _finish(built: Prepared, folder: Path, outcome: Cloned) -> int:
    total = built.config.fit.num_epochs
    early = " (nothing was gained any more)" if built.cloner.stopped_early else ""
    print(
        f"{'finished' if built.cloner.finished else 'stopped'} after {outcome.epochs} of {total} epochs{early}, "
        f"{outcome.seconds:.0f} s; best on the validation part: {outcome.best:.3f} nats a row at epoch "
        f"{outcome.best_epoch}"
    )
    if outcome.inexact:
        print(f"exact_resume: false, because {outcome.inexact}")
    if outcome.measured is not None:
        print("\n".join(lines_of(outcome.measured)))
    for file in outcome.files:
        word = {"metrics": "metrics", "report": "report "}.get(file.stem, "figure ")
        print(f"{word} {file}")  # not through rich, which breaks paths
    print(f"saved   {folder / CHECKPOINTS}")
    print(f"run     {folder}")
    if not outcome.finished:
        print(f"to go on: {shlex.join(['latentpg', 'resume', str(folder)])}")
    else:
        print(f"next: {shlex.join(['latentpg', 'evaluate', str(folder)])}")
        if built.config.selection.env is not None:
            command = ["latentpg", "train", "--env", built.config.selection.env, "--from", str(folder)]
            print(f"next: {shlex.join(command)}")
    return 0 if outcome.signal is None else EXIT_OF_SIGNAL + outcome.signal


def _names_cloning(words: Sequence[str]) -> bool:
    return bool(words) and not {"-h", "--help"} & {*words[:1]} and is_cloning(Path(words[0]).expanduser())


def _errors() -> Console:
    return Console(stderr=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
