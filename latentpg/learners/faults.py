"""What ends an update before it changes anything."""

from __future__ import annotations

from latentpg.errors import LatentPGError


class LearningFault(LatentPGError, RuntimeError):
    """Something in an update is not finite; parameters are as they were before the step."""


class WorkerFault(LatentPGError, RuntimeError):
    """A worker of those that learn together is gone, hangs, or is not like the others."""
