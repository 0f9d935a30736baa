"""The ``latentpg`` command.

``latentpg study NAME`` runs a named study, ``latentpg list`` shows what there is. Exit status: 0, or 2 after one
message on the error stream for a mistake of the user's, or 130 when interrupted.
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from latentpg import __version__
from latentpg.errors import LatentPGError, OptionError, did_you_mean
from latentpg.estimators import ESTIMATORS, GUIDE_OBJECTIVES
from latentpg.runs import create_run_folder
from latentpg.studies import (
    STUDIES,
    Outputs,
    Study,
    StudyResult,
    build_problem,
    make_study,
    merge_skipped,
    one_thread,
    progress,
    run_study,
    summarize,
    write_outputs,
)
from latentpg.studies.sources import MixtureTransitions

USAGE_ERROR = 2
"""Exit status after a mistake of the user's."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number, as shells count."""

PLAIN_WIDTH = 132
"""Columns of a table where there is no terminal to fit it to."""


@dataclass(frozen=True)
class StudyOptions:
    """Run a named study and write its table, figures and report into a new folder."""

    out: Path | None = None
    """Folder to write to, new or empty; without it runs/NAME-DATE-TIME."""
    seed: int = 0
    """One seed for everything that is drawn."""
    num_replicates: int = 200
    """Independent gradients measured in every cell."""
    num_rows: int = 256
    """Recorded rows (s, a, z)."""
    num_particles: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """The grid of K."""
    env_id: str = "CartPole-v1"
    """Gymnasium environment in which the policy acts."""


def main() -> int:
    """Run the command line in ``sys.argv`` and return the exit status."""
    try:
        return _run(sys.argv[1:])
    except LatentPGError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(words: Sequence[str]) -> int:
    match [*words]:
        case [] | ["-h" | "--help", *_]:
            print(_overview())
            return 0
        case ["--version", *_]:
            print(f"latentpg {__version__}")
            return 0
        case [command, *rest] if command in _COMMANDS:
            return _COMMANDS[command](rest)
        case [first, *_]:
            kind = "option" if first.startswith("-") else "command"
            known = ["--help", "--version"] if kind == "option" else [*_COMMANDS]
            raise OptionError(
                "latentpg",
                f"unknown {kind}",
                expected=f"one of {', '.join(known)}",
                got=repr(first),
                fix=did_you_mean(first, known),
            )
    raise AssertionError(words)


def _overview() -> str:
    return f"""latentpg {__version__}: latent-variable policies, and policy gradients held to the exact answer.

usage: latentpg COMMAND [OPTIONS]

  study NAME   run a named study ({", ".join(STUDIES)}); `latentpg study NAME --help` shows its options
  list         list estimators, guide objectives and studies
  --version    print the version
  -h, --help   print this"""


def _study(words: Sequence[str]) -> int:
    match [*words]:
        case ["-h" | "--help", *_]:
            print(f"usage: latentpg study NAME [OPTIONS]\n\nNAME is one of: {', '.join(STUDIES)}")
            return 0
        case [name, *rest] if not name.startswith("-"):
            study = make_study(name)
            options = _parse(study, rest)
            return _run_study(_resolve(study, options), options.out)
    raise OptionError(
        "latentpg study",
        "the study's name comes first",
        expected=f"latentpg study NAME [OPTIONS], with NAME one of {', '.join(STUDIES)}",
        got=shlex.join(["latentpg", "study", *words]),
        fix=f"latentpg study {next(iter(STUDIES))}",
    )


def _parse(study: Study, words: Sequence[str]) -> StudyOptions:
    """Parse the options of a study, whose own settings are the defaults; tyro exits with status 2 on a bad value."""
    assert isinstance(study.source, MixtureTransitions)
    _check_words(f"latentpg study {study.name}", words, [f"--{f.name.replace('_', '-')}" for f in fields(StudyOptions)])
    defaults = StudyOptions(
        seed=study.seed,
        num_replicates=study.num_replicates,
        num_rows=study.source.num_rows,
        num_particles=study.num_particles,
        env_id=study.source.env_id,
    )
    return tyro.cli(
        StudyOptions, args=words, prog=f"latentpg study {study.name}", default=defaults, description=study.title
    )


def _check_words(where: str, words: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an option that does not exist, in the words of all our errors; tyro would name it without a suggestion."""
    for word in words:
        option = word.partition("=")[0]
        is_option = option.startswith("--") or (option.startswith("-") and option[1:2].isalpha())
        if is_option and option.replace("_", "-") not in [*known, "--help", "-h"]:
            raise OptionError(
                where,
                "unknown option",
                expected=f"one of {', '.join(known)}" if known else "no options",
                got=repr(word),
                fix=did_you_mean(option, known) if known else f"drop {word}",
            )


def _resolve(study: Study, options: StudyOptions) -> Study:
    assert isinstance(study.source, MixtureTransitions)
    return replace(
        study,
        seed=options.seed,
        num_replicates=options.num_replicates,
        num_particles=options.num_particles,
        source=replace(study.source, num_rows=options.num_rows, env_id=options.env_id),
    )


def command_of(study: Study) -> str:
    """Spell the command that runs a study again with the same results.

    >>> command_of(make_study("quickstart"))
    'latentpg study quickstart --seed 0'
    """
    assert isinstance(study.source, MixtureTransitions)
    named = make_study(study.name)
    assert isinstance(named.source, MixtureTransitions)
    words = ["latentpg", "study", study.name, "--seed", str(study.seed)]
    if study.num_replicates != named.num_replicates:
        words += ["--num-replicates", str(study.num_replicates)]
    if study.source.num_rows != named.source.num_rows:
        words += ["--num-rows", str(study.source.num_rows)]
    if study.num_particles != named.num_particles:
        words += ["--num-particles", *map(str, study.num_particles)]
    if study.source.env_id != named.source.env_id:
        words += ["--env-id", study.source.env_id]
    return shlex.join(words)


def _run_study(study: Study, out: Path | None) -> int:
    command = command_of(study)
    with one_thread():
        problem = build_problem(study)  # before the folder is made: a mistake in the source leaves nothing behind
        folder = create_run_folder(study.name, config=study.config(), command=command, seed=study.seed, out=out)
        with progress(len(list(study.cells())), console=Console(stderr=True)) as advance:
            result = run_study(study, problem, advance=advance)
    outputs = write_outputs(result, folder, command=command)
    _show(result, outputs)
    return 0


def _show(result: StudyResult, outputs: Outputs) -> None:
    console = _console()
    summary = summarize(result)
    table = Table(title=f"{result.study.title}: {result.study.source.describe()}", title_justify="left")
    for place, column in enumerate(summary.columns):
        table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
    for row in summary.rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        "Bias and noise as shares of the exact gradient's length; ≤: upper end of a 95 % interval that reaches zero; "
        "–: not run.",
        highlight=False,
    )
    for which, why in merge_skipped(result.skipped):
        print(f"skipped: {which}: {why}")
    print("Each figure is there as .png, as .svg, and with its numbers as .csv.")
    for kind, paths in (("figure", outputs.figures), ("table ", (outputs.table,)), ("report", (outputs.report,))):
        for path in paths:
            print(f"{kind}  {path}")  # not through rich, which would break long paths


def _list(words: Sequence[str]) -> int:
    @dataclass(frozen=True)
    class ListOptions:
        """List estimators of log pi, guide objectives and studies, by the names that commands and files use."""

    _check_words("latentpg list", words, [])
    tyro.cli(ListOptions, args=words, prog="latentpg list")
    console = _console()
    groups: Mapping[str, Mapping[str, Callable[..., Any]]] = {
        "Estimators of log π(a|s)": ESTIMATORS,
        "Guide objectives": GUIDE_OBJECTIVES,
    }
    for title, known in groups.items():
        console.print(f"\n[bold]{title}[/bold]")
        table = Table(box=None, show_header=False, pad_edge=True)
        for name, maker in known.items():
            table.add_row(name, _first_sentence(maker))
        console.print(table)
    console.print("\n[bold]Studies[/bold]")
    table = Table(box=None, show_header=False, pad_edge=True)
    for name in STUDIES:
        table.add_row(name, make_study(name).title)
    console.print(table)
    return 0


def _first_sentence(documented: Callable[..., Any]) -> str:
    text = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")
    for tex, plain in _PLAIN_TEX.items():
        text = text.replace(tex, plain)
    text = " ".join(re.sub(r":\w+:`([^`]*)`", r"\1", text).split())
    return text.replace("- ", "-").replace(" , ", ", ")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


_PLAIN_TEX = {
    r"\frac1K": "1/K",
    r"\bar w": " w̄",
    r"\sum": " Σ",
    r"\log": " log ",
    r"\psi": "ψ",
    r"\partial": " ∂",
    r"\sim": "~",
    r"\mid": "|",
    r"\,": " ",
    "``": "",
    "^2": "²",
}

_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"study": _study, "list": _list}

if __name__ == "__main__":
    sys.exit(main())
