"""Giving an environment's own noise another course after a reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from latentpg.errors import OptionError


def replace_noise(where: str, envs: VectorEnv[Any, Any, Any], seeds: Mapping[int, int]) -> None:
    """Replace ``np_random`` of the members in ``seeds`` by a stream of the seed given; the others keep theirs.

    The streams are read back. An environment whose stream cannot be read or replaced is refused.
    """
    bare: Any = envs.unwrapped
    wanted = {member: np.random.default_rng(seed) for member, seed in seeds.items()}
    try:
        bare.set_attr("np_random", [wanted.get(n, old) for n, old in enumerate(bare.get_attr("np_random"))])
        found = bare.get_attr("np_random")
        same = all(found[n].bit_generator.state == stream.bit_generator.state for n, stream in wanted.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise _refusal(where, repr(error)) from error
    if not same:
        raise _refusal(where, "another stream than the one that was set")


def _refusal(where: str, got: str) -> OptionError:
    return OptionError(
        where,
        "the environments' noise cannot be made independent",
        expected="members whose `np_random` can be read and replaced",
        got=got,
        fix='noise="shared", or an environment that draws from self.np_random as gymnasium.Env has it',
    )
