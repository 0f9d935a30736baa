"""Errors that teach: every mistake of a caller ends in one message with the same four lines.

A message says where it happened and what is wrong, then what was expected, what came, and how to mend it::

    ShapeError in score(): `action`
      expected: [B=32]
      got:      [32, 1]
      likely:   a trailing dimension of size one
      fix:      action.squeeze(-1)

One class per family, all under :class:`LatentPGError`, each also a builtin (``ValueError``, ``TypeError`` or
``LookupError``) so that code which knows nothing of this library can still catch it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class LatentPGError(Exception):
    """Base of every error this library raises on purpose."""

    def __init__(
        self,
        where: str,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        likely: str | None = None,
        fix: str | None = None,
    ) -> None:
        lines = [f"{type(self).__name__} in {where}: {what}"]
        details = {"expected": expected, "got": got, "likely": likely, "fix": fix}
        lines += [f"  {label + ':':<9} {text}" for label, text in details.items() if text is not None]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Callable[[type[LatentPGError], str], LatentPGError], tuple[type[LatentPGError], str]]:
        """Pickle the finished message, so that the error survives the way out of a worker process."""
        return _rebuilt, (type(self), str(self))


def _rebuilt(kind: type[LatentPGError], message: str) -> LatentPGError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


class ShapeError(LatentPGError, ValueError):
    """A tensor's shape is not the one its role asks for."""


class SupportError(LatentPGError, ValueError):
    """A value lies where its distribution has no mass, or a proposal misses mass it must cover."""


class SiteError(LatentPGError, LookupError):
    """A Pyro site is missing, misnamed, or of a kind that the question cannot be asked of."""


class WeightError(LatentPGError, ValueError):
    """Importance weights are NaN, infinite, or zero for every particle of a row."""


class EstimatorError(LatentPGError, ValueError):
    """An estimator or guide objective is asked for something it cannot do."""


class RecordedLatentError(LatentPGError, LookupError):
    """An estimator needs the latent that was recorded while acting, and the data carry none."""


class OptionError(LatentPGError, ValueError):
    """An option or a name from a registry is not known, or its value is out of range."""


class QuadratureError(LatentPGError, ArithmeticError):
    """A numerical integral did not settle, so its value is not to be trusted."""


class SpaceError(LatentPGError, TypeError):
    """A Gymnasium space that no head or encoder here serves."""


class StudyError(LatentPGError, ValueError):
    """A study, its file or its run folder is not what it should be."""


class CheckpointError(LatentPGError, ValueError):
    """A checkpoint cannot be written, found or read."""


class DamagedCheckpointError(CheckpointError):
    """What lies where a checkpoint should be is not what was written: cut short, changed, or made by somebody else."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names, or list them all.

    >>> did_you_mean("conditonal-is", ["conditional-is", "posterior-is", "elbo"])
    'did you mean conditional-is?'
    >>> did_you_mean("xyz", ["b", "a"])
    'choose one of a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(names)}"
