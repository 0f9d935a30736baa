r"""Rows from the user's own file, behind the user's own policy.

The file is an ``.npz`` archive of numpy arrays that all lead with the number of rows B:

``obs``
    ``[B, ...]``, or ``[B, T, S]`` beside a ``mask [B, T]`` for rows of several steps;
``action``
    ``[B, ...]``, in the policy's own coordinates;
one array for each latent site, by its name
    ``[B, ...]``, what was recorded while acting; all sites or none;
``log_joint``
    ``[B]``, log p(z, a | s) as it was while acting, if it was kept. It is held against what the policy says now.

The archive is read as data: object arrays, which would run code, are refused, and so is anything whose header promises
more than the file may hold. The policy *is* code, and is run because the user names it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentpg.errors import LatentPGError, StudyError
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import (
    LatentPolicy,
    Latents,
    Observations,
    Span,
    draw_guide,
    draw_prior,
    log_joint,
    num_rows,
    parameter_dtype,
)
from latentpg.studies.archive import read_archive
from latentpg.studies.problem import Problem
from latentpg.studies.references import find_reference
from latentpg.studies.user_policy import file_of, load_policy

NOT_SITES = ("obs", "action", "mask", "log_joint")
"""Arrays of the archive that are not latents."""


@dataclass(frozen=True)
class RecordedRows:
    """Rows (s, a), and z if it was recorded, from the archive ``path``, behind ``policy`` = ``path/to/file.py:NAME``.

    NAME is a policy or a callable without arguments that returns one; it is made on the study's own random stream.
    Floating-point arrays come in the policy's floating-point type, all others as they are. The reference is what
    :func:`~latentpg.studies.references.find_reference` finds. Recorded latents are trusted to be the policy's own
    unless the archive holds ``log_joint``.
    """

    path: str
    policy: str

    def describe(self) -> str:
        """Say what the rows are."""
        return (
            f"rows of {Path(self.path).name}, policy {Path(file_of(self.policy)).name}:{self.policy.rpartition(':')[2]}"
        )

    def build(self, seed: int) -> Problem:
        """Load the policy, read the rows, and check that they fit each other."""
        here = torch.get_default_device()  # a study's, where its cells are measured
        arrays = {name: value.to(here) for name, value in read_archive(Path(self.path)).items()}
        with seeded(stream_seed(seed, "policy")):
            policy = load_policy(self.policy)
        obs, action, latents = _rows(self.path, arrays, parameter_dtype(policy))
        with seeded(stream_seed(seed, "reference")):
            _check_sites(self.path, policy, obs, action, latents)
            facts = _check_density(self.path, policy, obs, action, latents, arrays.get("log_joint"))
            found = find_reference(policy, obs, action)
        return Problem(
            policy,
            obs,
            action,
            latents or None,
            {
                "rows": num_rows(obs),
                **facts,
                "reference": found.reason,
                "sha256 of the rows": _digest(self.path),
                "sha256 of the policy": _digest(file_of(self.policy)),
            },
            exact=found.exact,
            redraw=found.redraw,
            seed=seed,
        )


def _rows(path: str, arrays: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Observations, Tensor, Latents]:
    missing = [name for name in ("obs", "action") if name not in arrays]
    if missing:
        raise StudyError(
            path,
            f"no array {' and '.join(f'`{name}`' for name in missing)}",
            expected="`obs` and `action`, and one array for each latent site if latents were recorded",
            got=", ".join(arrays) or "an empty archive",
            fix="np.savez(path, obs=..., action=..., z=...)",
        )
    rows = {name: value.shape[0] if value.ndim else None for name, value in arrays.items()}
    if len(set(rows.values())) != 1 or rows["obs"] in (None, 0):
        raise StudyError(
            path,
            "arrays of different lengths" if len(set(rows.values())) != 1 else "no rows",
            expected="arrays [B, ...] with the same B >= 1",
            got=", ".join(f"`{name}` {list(value.shape)}" for name, value in arrays.items()),
        )
    for name, value in arrays.items():
        finite = torch.isfinite(value).reshape(len(value), -1).all(1)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten()
            raise StudyError(
                path,
                f"`{name}` has NaN or infinite entries",
                expected="finite numbers, in padding too",
                got=f"such entries in {len(bad)} of {len(value)} rows, first in row {int(bad[0])}",
            )
    typed = {name: value.to(dtype) if value.is_floating_point() else value for name, value in arrays.items()}
    obs: Observations = typed["obs"]
    if "mask" in typed:
        obs = _span(path, typed["obs"], typed["mask"])
    return obs, typed["action"], {name: value for name, value in typed.items() if name not in NOT_SITES}


def _span(path: str, obs: Tensor, mask: Tensor) -> Span:
    fits = obs.ndim == 3 and mask.shape == obs.shape[:2] and bool(((mask == 0) | (mask == 1)).all())
    if not fits or not bool(mask[:, 0].all()):
        raise StudyError(
            path,
            "`mask` does not fit `obs`",
            expected="obs [B, T, S] and a mask [B, T] of zeros and ones that holds each row's first step",
            got=f"obs {list(obs.shape)}, mask {list(mask.shape)}"
            + ("" if not fits else f", without the first step in row {int((mask[:, 0] == 0).nonzero()[0])}"),
        )
    return Span(obs if obs.is_floating_point() else obs.to(torch.get_default_dtype()), mask.bool())


def _check_sites(path: str, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> None:
    try:
        with torch.no_grad():
            model = {
                name: tuple(value.shape[1:]) for name, value in draw_prior(policy, obs, num_particles=1).latents.items()
            }
            guide = draw_guide(policy, obs, action, num_particles=1).latents
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise _does_not_run(path, error) from error
    if set(model) != set(guide):
        raise StudyError(
            "the user's policy",
            "model and guide sample different latents",
            expected=f"the same sites in both; the model has {_list(model)}",
            got=f"{_list(guide)} in the guide",
        )
    if latents and set(latents) != set(model):
        raise StudyError(
            path,
            "the recorded latents are not the policy's",
            expected=f"{_list(model)}, or none of them",
            got=_list(latents),
            fix=f"name the arrays as the policy names its sites; besides them there may be {', '.join(NOT_SITES)}",
        )
    for name, value in latents.items():
        if tuple(value.shape) != model[name]:
            raise StudyError(
                path,
                f"latent `{name}` has another shape than the policy's site",
                expected=str(list(model[name])),
                got=str(list(value.shape)),
            )


def _check_density(
    path: str, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents, recorded: Tensor | None
) -> Mapping[str, float]:
    """Hold the recorded latents against the policy: they must be possible, and as likely as they were."""
    if not latents:
        return {}
    try:
        with torch.no_grad():
            now = log_joint(policy, obs, action, {name: value.unsqueeze(0) for name, value in latents.items()})[0]
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise _does_not_run(path, error) from error
    if not bool(torch.isfinite(now).all()):
        bad = (~torch.isfinite(now)).nonzero().flatten()
        raise StudyError(
            path,
            "latents or actions that the policy cannot produce",
            expected="a finite log p(z, a | s) in every row",
            got=f"{float(now[bad[0]])} in row {int(bad[0])} ({len(bad)} such rows of {len(now)})",
        )
    if recorded is None:
        return {}
    change = float((now - recorded.to(now.dtype)).abs().max())
    tolerance = 1e3 * torch.finfo(now.dtype).eps * max(1.0, float(recorded.abs().max()))
    if not change <= tolerance:
        raise StudyError(
            path,
            "log p(z, a | s) is not what it was when the rows were recorded",
            expected=f"a change of at most {tolerance:.1e} nats",
            got=f"{change:.3g} nats in row {int((now - recorded).abs().nan_to_num(nan=math.inf).argmax())}",
            likely="other parameters than those that acted, or rows out of order",
            fix="load the parameters that acted in the file that makes the policy",
        )
    return {"largest change of log p(z, a | s) from acting to scoring (nats)": change}


def _does_not_run(path: str, error: Exception) -> StudyError:
    told = isinstance(error, LatentPGError)
    return StudyError(
        "the user's policy",
        f"it does not run on the rows of {path}",
        got=str(error).strip() if told else f"{type(error).__name__}: {error}",
        fix=None if told else "run policy.model(obs) and policy.guide(obs, action) on a few of these rows",
    )


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no latents"


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
