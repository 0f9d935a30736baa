"""Beginning from the policy of an earlier run: of `latentpg imitate`, or of `latentpg train`.

The policy's name, its options, those of all networks and the environment come from there, and the tensors of the
policy with its guide. So do the statistics that observations are normalised by, and they stay as they are: what moved
them would change the policy, and the reference that it is held near.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from latentpg.errors import OptionError, StudyError
from latentpg.learners.agent import under
from latentpg.programs import LatentPolicy
from latentpg.runs.tensors import encode_tensors
from latentpg.training.cloned import KEPT_AS_BEST, is_cloning, read_cloned
from latentpg.training.config import known_values, read_options, resolve
from latentpg.training.parts import options_of
from latentpg.training.policies import POLICY_PARTS
from latentpg.training.saving import load
from latentpg.training.source import INHERITED, KEYS, Source


@dataclass(frozen=True, eq=False)
class Begun:
    """What an earlier run hands on: options by name, the source among them, and the policy's tensors."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_source(path: Path | str, *, checkpoint: str | None = None) -> Begun:
    """Read what a run's folder hands on; ``checkpoint`` is best or last, best unless told (or what cloning kept)."""
    path = Path(path).expanduser().absolute()
    if is_cloning(path):
        cloned = read_cloned(path, which=checkpoint)
        checkpoint = checkpoint or str(cloned.values.get("keep", KEPT_AS_BEST))
        values = {**_options(cloned.network), **_options(cloned.part), "policy": cloned.policy, "env": cloned.env}
        values["normalize_observations"] = True  # its statistics are always the policy's encoder
        tensors = cloned.tensors
    else:
        checkpoint = checkpoint or "best"
        values = _values_of(path)
        tensors = under("agent.policy", load(path, checkpoint, say=_say).state)
    names = [*INHERITED, *options_of("policy", POLICY_PARTS[values["policy"]]), "env"]
    kept = {name: values[name] for name in names if values.get(name) is not None}
    kept.setdefault("normalize_observations", False)
    return Begun({**kept, **Source(str(path), checkpoint, digest(tensors)).values()}, tensors)


def inherited_names(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the options that no run may change of its source."""
    return [*INHERITED, *options_of("policy", POLICY_PARTS[values["policy"]])]


def tensors_of(source: Source | None) -> Mapping[str, Tensor] | None:
    """Read the policy's tensors again, which must be those that the configuration speaks of."""
    if source is None:
        return None
    tensors = read_source(source.path, checkpoint=source.checkpoint).tensors
    if digest(tensors) != source.sha256:
        raise OptionError(
            "latentpg train",
            f"the {source.checkpoint} policy of {source.path} is not the one that this run is to begin with",
            expected=f"tensors of SHA-256 {source.sha256}",
            got=digest(tensors),
            likely="the run has gone on",
            fix="--from RUN, which takes the policy as it is now",
        )
    return tensors


def begin_with(policy: LatentPolicy, tensors: Mapping[str, Tensor], source: Source) -> None:
    """Put tensors into a policy that was built alike; those of other spaces are refused."""
    assert isinstance(policy, nn.Module)
    mine = {name: list(value.shape) for name, value in policy.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in tensors.items()}
    differs = sorted(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
    if differs:
        raise OptionError(
            "latentpg train",
            f"the policy of {source.path} is for another environment",
            expected=f"`{differs[0]}` {mine.get(differs[0], 'absent')}",
            got=str(theirs.get(differs[0], "absent")),
            likely="observations or actions of another size",
            fix="the environment of that run, which is taken without --env",
        )
    policy.load_state_dict(dict(tensors))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors as a checkpoint would hold them."""
    return hashlib.sha256(encode_tensors(dict(sorted(tensors.items())))).hexdigest()


def _options(part: object) -> dict[str, Any]:
    """Return a part's fields as a file has them."""
    found = {each.name: getattr(part, each.name) for each in fields(part)}  # type: ignore[arg-type]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _values_of(path: Path) -> dict[str, Any]:
    file = path / "config.toml"
    if not file.is_file():
        raise StudyError(
            "--from",
            f"{path} holds no run",
            expected="the folder of an earlier `latentpg imitate` or `latentpg train`, with its config.toml",
            got="no config.toml" if path.is_dir() else "no such folder",
        )
    values = read_options(file)
    if not (path / "checkpoints").is_dir() and any(path.glob("seed-*")):
        fix = f"--from {path}/seed-N"
        raise StudyError("--from", f"{path} holds one run for each seed", expected="one run", fix=fix)
    if "env" not in values:
        raise StudyError("--from", f"{path} holds no training run", expected="`env` in config.toml", got="none")
    known = known_values(resolve(values, where=str(file)))
    return {name: value for name, value in known.items() if name not in KEYS}


def _say(text: str) -> None:
    print(text, file=sys.stderr)
