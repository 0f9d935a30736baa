"""Policies by name: the options of each, and the policy that they make.

Training and cloning put their policies together here, from the same names, so that a run of one can go on in the other:
a folder says which policy it holds by the same words, whichever command wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gymnasium import spaces
from torch import nn

from latentpg.errors import OptionError
from latentpg.numerics.activations import Tanh
from latentpg.policies import (
    ChunkPolicy,
    CodeLatent,
    EpisodePolicy,
    GaussianLatent,
    GaussianPolicy,
    MixturePolicy,
    PlainPolicy,
    TwoLevelPolicy,
)
from latentpg.policies.heads import set_scale
from latentpg.policies.priors import Latent
from latentpg.programs import LatentPolicy
from latentpg.values.critics import orthogonal_

SMALL_GAIN = 0.01
"""Gain of a policy's last layers where nothing else is asked for: actions begin nearly alike in all states."""

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
"""Every activation that a configuration can name."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What all networks of a run are, whatever the policy.

    ``hidden`` and ``activation`` are those of every network. A ``Box``'s actions begin with standard deviations of
    ``exp(initial_log_std)``, in policy coordinates: its bounds are -1 and 1. They never fall below
    ``exp(min_log_std)``; without it there is no floor. With ``orthogonal_init`` networks start at orthogonal weights,
    the policy's last layers at ``output_gain`` of them: at a hundredth a policy begins nearly alike in all states and
    at all values of its latent, which then explores nothing before something is learnt.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    initial_log_std: float | int = 0.0
    min_log_std: float | int | None = None
    orthogonal_init: bool = True
    output_gain: float | int = SMALL_GAIN

    def __post_init__(self) -> None:
        """Check the numbers."""
        where = f"{type(self).__name__}()"
        if not math.isfinite(self.initial_log_std):
            raise OptionError(where, "`initial_log_std`", expected="a finite number", got=repr(self.initial_log_std))
        if self.min_log_std is not None and not math.isfinite(self.min_log_std):
            expected = "a finite number, or none"
            raise OptionError(where, "`min_log_std`", expected=expected, got=repr(self.min_log_std))
        if not 0 < self.output_gain < math.inf:
            raise OptionError(where, "`output_gain`", expected="a number > 0", got=repr(self.output_gain))
        if not self.hidden or any(width < 1 for width in self.hidden):
            raise OptionError(where, "`hidden`", expected="widths >= 1, one or more", got=repr(self.hidden))


@dataclass(frozen=True)
class MixturePart:
    """Options of :class:`~latentpg.policies.MixturePolicy`."""

    num_components: int = 4


@dataclass(frozen=True)
class GaussianPart:
    """Options of :class:`~latentpg.policies.GaussianPolicy`."""

    latent_size: int = 2
    prior: Literal["learned", "standard"] = "learned"


@dataclass(frozen=True)
class TwoLevelPart:
    """Options of :class:`~latentpg.policies.TwoLevelPolicy`."""

    num_modes: int = 4
    style_size: int = 2


@dataclass(frozen=True)
class PlainPart:
    """:class:`~latentpg.policies.PlainPolicy`, the baseline without a latent, has no options of its own."""


@dataclass(frozen=True)
class _SpanPart:
    """Options of a latent that spans several steps: codes, or a Gaussian vector whose prior is one of three."""

    latent_kind: Literal["gaussian", "codes"] = "gaussian"
    latent_size: int = 8
    prior: Literal["learned", "standard", "mixture"] = "learned"
    num_prior_components: int = 32
    num_codes: int = 24

    def latent(self) -> Latent:
        """Return the latent that the options describe."""
        if self.latent_kind == "codes":
            return CodeLatent(self.num_codes)
        if self.prior == "mixture":
            return GaussianLatent(self.latent_size, "mixture", num_components=self.num_prior_components)
        return GaussianLatent(self.latent_size, self.prior)


@dataclass(frozen=True)
class ChunkPart(_SpanPart):
    """Options of :class:`~latentpg.policies.ChunkPolicy`.

    ``chunk_size`` H actions are decided on at once, the first ``num_action_steps`` h of them carried out. The latent
    is ``latent_size`` Gaussian numbers under a ``prior``, of ``num_prior_components`` where that is a mixture, or one
    of ``num_codes`` codes.
    """

    chunk_size: int = 8
    num_action_steps: int = 8
    chunk_decoder: Literal["mlp", "transformer"] = "mlp"

    def __post_init__(self) -> None:
        """Check that no more is carried out than was decided on."""
        if not 1 <= self.num_action_steps <= self.chunk_size:
            raise OptionError(
                "ChunkPart()",
                "`num_action_steps`",
                expected=f"1 to the {self.chunk_size} actions of a chunk",
                got=repr(self.num_action_steps),
            )


@dataclass(frozen=True)
class EpisodePart(_SpanPart):
    """Options of :class:`~latentpg.policies.EpisodePolicy`.

    The latent is ``latent_size`` Gaussian numbers under a ``prior``, of ``num_prior_components`` where that is a
    mixture, or one of ``num_codes`` codes. The guide reads the episode by ``reader``; the log standard deviations of a
    Gaussian one begin at ``initial_guide_log_std``.
    """

    reader: Literal["attention", "gru"] = "attention"
    initial_guide_log_std: float | int | None = None

    def __post_init__(self) -> None:
        """Check that there are standard deviations to begin anywhere."""
        if self.initial_guide_log_std is not None and self.latent_kind == "codes":
            raise OptionError(
                "EpisodePart()",
                "`initial_guide_log_std` of a guide that has none",
                expected="none, for codes",
                got=repr(self.initial_guide_log_std),
                fix="--latent-kind gaussian",
            )


PolicyPart = MixturePart | GaussianPart | TwoLevelPart | PlainPart | ChunkPart | EpisodePart
"""Options of any policy."""

POLICY_PARTS: Mapping[str, Callable[..., PolicyPart]] = {
    "mixture": MixturePart,
    "gaussian": GaussianPart,
    "two-level": TwoLevelPart,
    "plain": PlainPart,
    "chunk": ChunkPart,
    "episode": EpisodePart,
}
"""The options of every policy that a configuration can name."""


def build_policy(
    part: PolicyPart,
    network: NetworkOptions,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    encoder: nn.Module | None = None,
) -> LatentPolicy:
    """Build the policy from the ambient random stream; what it does with observations first is ``encoder``'s.

    >>> boxes = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    >>> type(build_policy(EpisodePart(latent_kind="codes"), NetworkOptions(), *boxes)).__name__
    'EpisodePolicy'
    """
    common: dict[str, Any] = {
        "hidden": network.hidden,
        "activation": ACTIVATIONS[network.activation],
        "encoder": encoder,
    }
    made: nn.Module
    match part:
        case MixturePart():
            made = MixturePolicy(observation_space, action_space, **asdict(part), **common)
        case GaussianPart():
            made = GaussianPolicy(observation_space, action_space, **asdict(part), **common)
        case TwoLevelPart():
            made = TwoLevelPolicy(observation_space, action_space, **asdict(part), **common)
        case PlainPart():
            made = PlainPolicy(observation_space, action_space, **common)
        case ChunkPart():
            made = ChunkPolicy(
                observation_space,
                action_space,
                horizon=part.chunk_size,
                latent=part.latent(),
                decoder=part.chunk_decoder,
                **common,
            )
        case EpisodePart():
            made = EpisodePolicy(
                observation_space,
                action_space,
                latent=part.latent(),
                reader=part.reader,
                initial_guide_log_std=part.initial_guide_log_std,
                **common,
            )
    for module in made.modules():
        set_scale(module, initial_log_std=network.initial_log_std, min_log_std=network.min_log_std)
    if network.orthogonal_init:
        for each in _networks_of(made):
            orthogonal_(each, output_gain=network.output_gain)
    return made


def _networks_of(policy: nn.Module) -> list[nn.Module]:
    """List what pi is made of: prior and decoder, or the plain policy's one network."""
    named = dict(policy.named_modules())
    return [named[name] for name in ("prior", "decoder.network", "network") if name in named]
