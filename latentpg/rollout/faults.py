"""What an environment can do wrong while it is stepped."""

from __future__ import annotations

from latentpg.errors import LatentPGError


class EnvironmentFault(LatentPGError, RuntimeError):
    """An environment gave what cannot be recorded, or did not do what it was told; nothing of it is kept."""
