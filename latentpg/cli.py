"""The ``latentpg`` command.

``latentpg train`` trains a policy, ``imitate`` clones one from demonstrations, ``evaluate`` and ``resume`` take up what
they left; ``record`` records demonstrations; ``latentpg study NAME`` runs a named study, ``latentpg list`` shows what
there is. Exit status: 0, or 2 after one message on the error stream for a mistake of the user's or a run that failed,
or 130 when interrupted, 143 when terminated, 141 when nobody reads the output any more.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from latentpg import __version__
from latentpg.cloning.commands import evaluate_run, imitate_command, resume_run
from latentpg.cloning.config import shipped_recipes
from latentpg.errors import LatentPGError, OptionError, StudyError, did_you_mean
from latentpg.numerics.devices import checked_device
from latentpg.recording import SCRIPTED, record_command
from latentpg.runs import at_work_in, create_run_folder, open_run_folder
from latentpg.studies import (
    Outputs,
    Study,
    StudyResult,
    build_problem,
    facets,
    make_study,
    merge_skipped,
    named_studies,
    one_thread,
    progress,
    run_study,
    summarize,
    write_outputs,
)
from latentpg.studies.execute import check_workers, run_cells
from latentpg.studies.options import check_owner_names, command_of, options_of, resolve
from latentpg.studies.run import Rows
from latentpg.studies.store import CellStore, fingerprint_of
from latentpg.training.commands import train_command
from latentpg.training.listing import everything
from latentpg.training.place import check_not_launched

USAGE_ERROR = 2
"""Exit status after a mistake of the user's."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number, as shells count."""

UNREAD = 141
"""Exit status where whoever read the output has gone: 128 and SIGPIPE's number."""

PLAIN_WIDTH = 132
"""Columns of a table where there is no terminal to fit it to."""


def main() -> int:
    """Run the command line in ``sys.argv`` and return the exit status."""
    try:
        try:
            return _told(sys.argv[1:])
        finally:
            sys.stdout.flush()  # now, for at the interpreter's end nobody can answer a pipe that is closed
    except OSError as error:  # of what is said itself: whoever read it has gone, or there is no room for it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # which would be flushed once more
            os.dup2(nowhere, stream.fileno())
        return UNREAD if isinstance(error, BrokenPipeError) else USAGE_ERROR


def _told(words: Sequence[str]) -> int:
    """Run a command; what goes wrong on purpose, or for want of room, ends in one message."""
    try:
        return _run(words)
    except LatentPGError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        print(_unusable(error), file=sys.stderr)
    except (MemoryError, RuntimeError, ValueError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OF_NO_MEMORY):
            raise
        print(_NO_MEMORY, file=sys.stderr)
    return USAGE_ERROR


_OF_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "array is too big")
"""What torch says of too little memory, here and on a card, and of sizes that no memory has; the last are NumPy's."""


def _unusable(error: OSError) -> StudyError:
    return StudyError(
        "latentpg",
        f"{error.filename or 'a file'} cannot be read or written",
        got=error.strerror or str(error),
        fix="mend that and run the command again; what was finished before is kept",
    )


_NO_MEMORY = OptionError(
    "latentpg", "there is not enough memory for what was asked for", fix="smaller networks, or fewer of them at a time"
)


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

  train        train a policy: `latentpg train --env CartPole-v1`; with --help and the names of
               parts (--algo, --policy, --estimator, ...) it shows the options of just those
  imitate      learn a policy from demonstrations: `latentpg imitate --data FILE --env ID`;
               with --help and --policy, --objective it shows the options of just those
  record       record demonstrations of an environment by a scripted or trained expert:
               `latentpg record --env latentpg/Avoiding-v0 --episodes-per-mode 4 --out demos.npz`
  evaluate RUN mean return of a run's policy over whole episodes; of a cloned one its measures
  resume RUN   go on with a run that was stopped
  study NAME   run a study: a file FILE.toml, or one of {", ".join(named_studies())};
               `latentpg study NAME --help` shows its options
  list         list algorithms, policies, estimators, objectives, studies, option files, environments
  --version    print the version
  -h, --help   print this"""


def _study(words: Sequence[str]) -> int:
    match [*words]:
        case ["-h" | "--help", *_]:
            print(f"usage: latentpg study NAME|FILE.toml [OPTIONS]\n\nNAME is one of: {', '.join(named_studies())}")
            return 0
        case [name, *rest] if not name.startswith("-"):
            study = make_study(name)
            options = _parse(name, study, rest)
            return _run_study(name, resolve(study, options), options)
    raise OptionError(
        "latentpg study",
        "the study's name comes first",
        expected=f"latentpg study NAME [OPTIONS], with NAME one of {', '.join(named_studies())}, or a file FILE.toml",
        got=shlex.join(["latentpg", "study", *words]),
        fix="latentpg study quickstart",
    )


def _parse(name: str, study: Study, words: Sequence[str]) -> Any:  # noqa: ANN401 (the study's own options)
    """Parse the options of a study, whose own settings are the defaults; tyro exits with status 2 on a bad value."""
    check_owner_names(study)
    kind = options_of(study)
    known = [f"--{f.name.replace('_', '-')}" for f in fields(kind)]
    switches = [f"--no-{f.name.replace('_', '-')}" for f in fields(kind) if isinstance(f.default, bool)]
    _check_words(f"latentpg study {name}", words, known, switches)
    return tyro.cli(kind, args=words, prog=f"latentpg study {name}", description=study.title)


def _check_words(where: str, words: Sequence[str], known: Sequence[str], switches: Sequence[str] = ()) -> None:
    """Refuse an option that does not exist, in the words of all our errors; tyro would name it without a suggestion."""
    for word in words:
        option = word.partition("=")[0]
        is_option = option.startswith("--") or (option.startswith("-") and option[1:2].isalpha())
        if is_option and option.replace("_", "-") not in [*known, *switches, "--help", "-h"]:
            raise OptionError(
                where,
                "unknown option",
                expected=f"one of {', '.join(known)}" if known else "no options",
                got=repr(word),
                fix=did_you_mean(option, known) if known else f"drop {word}",
            )


def _run_study(name: str, study: Study, options: Any) -> int:  # noqa: ANN401 (the study's own options)
    command, config = command_of(study, name), study.config()
    check_not_launched("latentpg study")
    check_workers(options.num_workers, options.backend)
    checked_device(options.device)
    with one_thread():
        build_problem(study)  # before the folder is made: a mistake in the source leaves nothing behind
    if options.resume:
        folder = open_run_folder(study.name, config=config, out=options.out)
    else:
        folder = create_run_folder(study.name, config=config, command=command, seed=study.seed, out=options.out)
    where = {} if options.device == "cpu" else {"device": options.device}  # rows of two devices are not one table's
    store = CellStore(folder.path, fingerprint_of({**config, **where}))
    missing = set(study.jobs()) - store.finished()
    with at_work_in(folder.path), progress(len(missing), console=Console(stderr=True)) as advance:

        def execute(keys: Sequence[str], work: Callable[[str], Rows]) -> Mapping[str, Rows]:
            run_cells(
                keys,
                work,
                store,
                num_workers=options.num_workers,
                backend=options.backend,
                advance=advance,
                say=lambda text: print(text, file=sys.stderr),
            )
            return {key: [dict(row) for row in store.read(key).rows] for key in keys}

        result = run_study(study, execute=execute, device=options.device)
    outputs = write_outputs(result, folder, command=command)
    _show(result, outputs)
    return 0


def _show(result: StudyResult, outputs: Outputs) -> None:
    console = _console()
    for facet in facets(result.study):
        summary = summarize(result, facet)
        title = f"{result.study.title}: {facet.label}; {result.study.source.describe()}"
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(summary.columns):
            table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
        for row in summary.rows:
            table.add_row(*row)
        console.print(table)
    console.print(
        "Bias and noise as shares of the reference's length; ≤: upper end of a 95 % interval that reaches zero; "
        "–: not run, or no reference.",
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
        """List what there is to choose from, by the names that commands and files use."""

    _check_words("latentpg list", words, [])
    tyro.cli(ListOptions, args=words, prog="latentpg list")
    console = _console()
    recorded = {name: f"{each.title} latentpg record --env {name} --out FILE.npz" for name, each in SCRIPTED.items()}
    known_here = {"What `latentpg record` has a script for": recorded, "Recipes that ship": shipped_recipes()}
    for title, known in {**everything(), **known_here}.items():
        console.print(f"\n[bold]{title}[/bold]")
        table = Table(box=None, show_header=False, pad_edge=True)
        for name, text in known.items():
            table.add_row(name, text)
        console.print(table, highlight=False)
    return 0


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "imitate": imitate_command,
    "record": record_command,
    "evaluate": evaluate_run,
    "resume": resume_run,
    "study": _study,
    "list": _list,
}

if __name__ == "__main__":
    sys.exit(main())
