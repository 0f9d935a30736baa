"""Where a run's policy came from, if it did not begin from random weights: an earlier run, and which tensors of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from latentpg.errors import OptionError
from latentpg.training.policies import NetworkOptions

KEYS = ("from", "from_checkpoint", "from_sha256")
"""What a configuration that has a source says of it."""

INHERITED = ("policy", "normalize_observations", *(each.name for each in fields(NetworkOptions)))
"""Options that come from the source, beside those of its policy."""


@dataclass(frozen=True)
class Source:
    """An earlier run's folder, which of its checkpoints, and the SHA-256 of the policy's tensors in it.

    A run needs the folder when it begins; its own checkpoints hold everything afterwards.
    """

    path: str
    checkpoint: str
    sha256: str

    def values(self) -> dict[str, str]:
        """Return names and values as a file of options has them."""
        return dict(zip(KEYS, (self.path, self.checkpoint, self.sha256), strict=True))


def source_of(values: Mapping[str, Any], *, where: str) -> Source | None:
    """Read the source out of names and values; None where there is none.

    >>> source_of({"from": "runs/a", "from_checkpoint": "best", "from_sha256": "0" * 64}, where="here").checkpoint
    'best'
    """
    found = [values.get(name) for name in KEYS]
    if all(each is None for each in found):
        return None
    path, checkpoint, sha256 = found
    if not (isinstance(path, str) and checkpoint in ("best", "last") and isinstance(sha256, str)):
        raise OptionError(
            where,
            "`from`",
            expected="`from` a folder, `from_checkpoint` best or last, and `from_sha256`, as a run writes them",
            got=repr(found),
            fix="leave all three out, or name the run on the command line: --from RUN",
        )
    return Source(path, str(checkpoint), sha256)
