"""The circumstances of a run: versions, hardware, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("latentpg", "torch", "pyro-ppl", "gymnasium", "numpy", "matplotlib", "joblib")
"""Packages whose versions are recorded."""


def describe_circumstances() -> dict[str, Any]:
    """Collect what a result may depend on beside its configuration: versions, hardware, torch's threads, the commit.

    >>> sorted(describe_circumstances())
    ['commit', 'hardware', 'python', 'versions']
    """
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": "cpu",
        },
        "commit": _commit(Path(__file__).parents[2]),
    }


def _version(package: str) -> str:
    if package == "latentpg":  # the code that runs, installed or not
        return str(sys.modules["latentpg"].__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit(root: Path) -> str | None:
    """Return the commit of the source tree, ``+changes`` if files differ from it.

    None if the package is not in a checkout.
    """
    if not (root / ".git").exists():  # an installed copy may lie inside someone else's repository
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    told = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=10)
    return told.stdout.strip()
