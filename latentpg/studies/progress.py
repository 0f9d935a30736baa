"""Progress of a study: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[str], None]
"""Called with the name of each piece of work when it is done."""

LINES = 10
"""About how many plain lines are written where there is no terminal."""


def silent(label: str) -> None:
    """Report nothing."""


@contextmanager
def progress(total: int, *, console: Console) -> Iterator[Advance]:
    """Show how many of ``total`` pieces are done, and about how long the rest will take."""
    if console.is_terminal:
        with _bar(total, console) as advance:
            yield advance
    else:
        yield _lines(total, console)


@contextmanager
def _bar(total: int, console: Console) -> Iterator[Advance]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda label: bar.update(task, advance=1, description=label)


def _lines(total: int, console: Console) -> Advance:
    start, done, written = time.monotonic(), 0, 0

    def advance(label: str) -> None:
        nonlocal done, written
        done += 1
        if done * LINES // total == written:
            return
        written = done * LINES // total
        spent = time.monotonic() - start
        left = spent / done * (total - done)
        console.print(f"{done}/{total} cells, {spent:.0f} s, about {left:.0f} s left ({label})", highlight=False)

    return advance
