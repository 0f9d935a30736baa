"""Every source of rows by the name that study files use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latentpg.studies.gaussian_mixture import GaussianMixtureData
from latentpg.studies.linear_gaussian import LinearGaussianData
from latentpg.studies.problem import Source
from latentpg.studies.recorded import RecordedRows
from latentpg.studies.skew_normal import SkewNormalData
from latentpg.studies.toys import RandomToys
from latentpg.studies.transitions import PolicyTransitions

SOURCES: Mapping[str, Callable[..., Source]] = {
    "transitions": PolicyTransitions,
    "toys": RandomToys,
    "gaussian-mixture": GaussianMixtureData,
    "linear-gaussian": LinearGaussianData,
    "skew-normal": SkewNormalData,
    "recorded": RecordedRows,
}
"""Names of sources; ``kind`` in a study file's ``[source]`` is one of them."""


def source_kind(source: Source) -> str:
    """Return the registered name of a source's kind, or its class's name if it is somebody's own.

    >>> source_kind(RandomToys())
    'toys'
    """
    return next((name for name, maker in SOURCES.items() if type(source) is maker), type(source).__name__)
