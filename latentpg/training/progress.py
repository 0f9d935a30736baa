"""Progress of a run: a live line with the time left on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from latentpg.studies.progress import LINES
from latentpg.training.log import STEPS, Row

Show = Callable[[Row], None]
"""Called with every row of metrics."""

SHOWN: Mapping[str, tuple[str, str]] = {
    "rollout/ep_rew_mean": ("return", ".1f"),
    "eval/mean_reward": ("evaluated", ".1f"),
    "train/ess": ("ESS/K", ".2f"),
    "train/ratio_mean": ("ratio", ".2f"),
    "train/clip_fraction": ("clip", ".2f"),
    "train/approx_kl": ("KL", ".4f"),
    "train/log_prob": ("log pi", ".2f"),
    "valid/log_prob": ("held out", ".2f"),
    "time/fps": ("steps/s", ".0f"),
}
"""What is shown of a row, where it is there: a short name and a format."""


def unseen(row: Row) -> None:
    """Show nothing."""


def describe(row: Row) -> str:
    """Spell what is shown of a row.

    >>> describe({"train/approx_kl": 0.01234, "time/fps": 2041.7, "train/value_loss": 3.0})
    'KL 0.0123, steps/s 2042'
    """
    return ", ".join(f"{name} {format(row[key], form)}" for key, (name, form) in SHOWN.items() if key in row)


@contextmanager
def progress(total: int, *, console: Console, done: int = 0, unit: str = "steps") -> Iterator[Show]:
    """Show steps out of ``total``, the latest metrics, and about how long the rest will take."""
    if console.is_terminal:
        with _bar(total, done, console, unit) as show:
            yield show
    else:
        yield _lines(total, done, console, unit)


@contextmanager
def _bar(total: int, done: int, console: Console, unit: str) -> Iterator[Show]:
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn(f"{unit},"),
        TimeRemainingColumn(),
        TextColumn("left,"),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task("", total=total, completed=done, told="starting")
        latest: dict[str, float | int] = {}

        def show(row: Row) -> None:
            latest.update(row)  # what a row has not is shown as it was last
            bar.update(task, completed=min(int(row[STEPS]), total), told=describe(latest))

        yield show


def _lines(total: int, done: int, console: Console, unit: str) -> Show:
    start, written = time.monotonic(), done * LINES // total
    latest: dict[str, float | int] = {}

    def show(row: Row) -> None:
        nonlocal written
        latest.update(row)
        steps = int(row[STEPS])
        reached = steps * LINES // total
        if reached == written or steps <= done:
            return
        written = reached
        left = (time.monotonic() - start) / (steps - done) * max(total - steps, 0)
        console.print(
            f"{steps}/{total} {unit}, about {left:.0f} s left: {describe(latest)}", highlight=False, soft_wrap=True
        )

    return show
