"""The policy that `latentpg imitate` left in a folder: what it was made of, and its tensors.

A folder of cloning says by the same words as one of training which policy it holds, and its checkpoints keep two copies
of the policy's tensors: those of the best measurement on held-out episodes, and the last ones. The statistics that
observations are normalised by are the policy's encoder, so they are among the tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from latentpg.errors import OptionError, StudyError
from latentpg.learners.agent import under
from latentpg.policies import observation_size
from latentpg.programs import LatentPolicy
from latentpg.rollout import ObservationNormalizer
from latentpg.runs.untrusted import RefusedError, read_toml
from latentpg.training.config import make_part, read_options
from latentpg.training.parts import checked_name, options_of
from latentpg.training.policies import POLICY_PARTS, NetworkOptions, PolicyPart, build_policy
from latentpg.training.saving import load

PREFIXES: Mapping[str, str] = {"best": "best_policy", "last": "policy"}
"""Where a checkpoint of cloning has the tensors of the policy: of the best measurement, and of the last step."""

KEPT_AS_BEST = "best"
"""What a folder without the option ``keep`` hands on."""


@dataclass(frozen=True, eq=False)
class ClonedPolicy:
    """A cloned policy by name, its options, those of its networks, its tensors, and what it was cloned for.

    ``env`` is None where demonstrations were given without an environment. ``values`` are all options of the run.
    """

    policy: str
    part: PolicyPart
    network: NetworkOptions
    tensors: Mapping[str, Tensor]
    env: str | None
    values: Mapping[str, Any]

    def build(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> LatentPolicy:
        """Build the policy for two spaces, with the tensors that it had; spaces of other sizes are refused."""
        encoder = ObservationNormalizer(observation_size(observation_space))
        made = build_policy(self.part, self.network, observation_space, action_space, encoder=encoder)
        assert isinstance(made, nn.Module)
        mine = {name: list(value.shape) for name, value in made.state_dict().items()}
        theirs = {name: list(value.shape) for name, value in self.tensors.items()}
        if mine != theirs:
            differs = sorted(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
            name = differs[0]
            raise OptionError(
                "cloned policy",
                f"it was cloned for other spaces than {observation_space} and {action_space}",
                expected=f"`{name}` {mine.get(name, 'absent')}",
                got=f"{theirs.get(name, 'absent')}",
                fix="the environment whose demonstrations it was cloned from",
            )
        made.load_state_dict(dict(self.tensors))
        return made


def is_cloning(path: Path) -> bool:
    """Tell whether a folder is one of `latentpg imitate`: its configuration names an objective and data."""
    try:
        values = read_toml(path / "config.toml")
    except (OSError, ValueError, RefusedError):
        return False
    return "objective" in values and "data" in values


def read_cloned(path: Path | str, *, which: str | None = None) -> ClonedPolicy:
    """Read what a cloning run's folder holds; ``which`` is ``"best"``, ``"last"``, or None for what the run chose."""
    path = Path(path).expanduser().absolute()
    file = path / "config.toml"
    if not is_cloning(path):
        raise StudyError(
            "cloned policy",
            f"{path} holds no cloning run",
            expected="the folder of an earlier `latentpg imitate`, with its config.toml",
            got="a folder of something else" if file.is_file() else "no config.toml",
        )
    if "seeds" in read_toml(file):
        raise StudyError(
            "cloned policy", f"{path} holds one run for each seed", expected="one run", fix=f"{path}/seed-N"
        )
    values = read_options(file)
    name = checked_name("policy", str(values.get("policy")))
    where, maker = str(file), POLICY_PARTS[name]
    kept = which or str(values.get("keep", KEPT_AS_BEST))
    if kept not in PREFIXES:
        raise OptionError("read_cloned()", "`which`", expected="best or last", got=repr(kept))
    state = load(path, "last", say=_say).state
    tensors = under(PREFIXES[kept], state) or under(PREFIXES["last"], state)
    return ClonedPolicy(
        name,
        make_part(where, maker, options_of("policy", maker), values),
        make_part(where, NetworkOptions, options_of("run", NetworkOptions), values),
        tensors,
        values.get("env"),
        values,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
