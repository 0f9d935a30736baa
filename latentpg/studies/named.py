"""Studies that have a name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latentpg.errors import StudyError, did_you_mean
from latentpg.studies.quickstart import quickstart
from latentpg.studies.spec import Study

STUDIES: Mapping[str, Callable[[], Study]] = {"quickstart": quickstart}
"""Every named study."""


def make_study(name: str) -> Study:
    """Return the study of a name.

    >>> make_study("quickstart").name
    'quickstart'
    """
    if name not in STUDIES:
        raise StudyError(
            "study",
            "unknown study",
            expected=f"one of {', '.join(STUDIES)}",
            got=repr(name),
            fix=did_you_mean(name, STUDIES),
        )
    return STUDIES[name]()
