"""What a run keeps of its learner: the last states, the one that evaluated best, and one of a fault."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from latentpg.errors import LatentPGError, StudyError
from latentpg.runs import Checkpoint, name_checkpoint, named_checkpoint, newest_checkpoint, save_checkpoint
from latentpg.runs.files import clear_temporaries
from latentpg.runs.upkeep import held

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints within a run's."""

KEPT = 2
"""How many of the last checkpoints stay, beside the best: one to go on from, and one should that be damaged."""


def save(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any], *, steps: int, is_best: bool) -> Path:
    """Write a checkpoint of the run, once a step, and let ``best`` mean it if it is."""
    path = save_checkpoint(folder / CHECKPOINTS, state, facts, step=steps, keep=KEPT)
    if is_best:
        name_checkpoint(path, "best")
    return path


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left in a run's folder and among its checkpoints, before anything more is begun."""
    clear_temporaries(folder)
    with held(folder / CHECKPOINTS):
        pass  # whoever holds the folder finds it cleared


def load(folder: Path, which: str, *, say: Callable[[str], None]) -> Checkpoint:
    """Read the checkpoint ``"best"`` or ``"last"`` of a run."""
    if which == "best":
        return named_checkpoint(folder / CHECKPOINTS, "best")
    return newest_checkpoint(folder / CHECKPOINTS, say=say)


def save_fault(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any], *, steps: int) -> None:
    """Keep the state at a fault apart from the run's checkpoints; that this fails must not hide the fault."""
    with suppress(LatentPGError):
        save_checkpoint(folder / "fault", state, facts, step=steps, keep=1)


def unwritten(folder: Path, error: OSError) -> StudyError:
    """Build the error for a file of a run that cannot be written, its checkpoints being as they were.

    >>> print(unwritten(Path("run"), OSError(28, "No space left on device")))
    StudyError in run folder: a file of run cannot be written
      expected: a folder that can be written to, on a disk with room
      got:      No space left on device
      fix:      mend that and go on from the newest checkpoint: latentpg resume run
    """
    return StudyError(
        "run folder",
        f"{error.filename or f'a file of {folder}'} cannot be written",
        expected="a folder that can be written to, on a disk with room",
        got=error.strerror or str(error),
        fix=f"mend that and go on from the newest checkpoint: {shlex.join(['latentpg', 'resume', str(folder)])}",
    )
