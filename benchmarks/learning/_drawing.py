r"""What the LASA study draws with: the motions as rows, paper to draw on, and how far two motions are apart.

A motion is seen from where it begins: the observation is :math:`(x_t - x_1, 100\,t/T)` in millimetres and as a
percentage of the motion, the action the displacement :math:`x_{t+1}-x_t` in millimetres. Every motion thus begins at
the same observation, and which of the 30 it is to be only the latent can say. The law of motion is
:math:`x_{t+1} = x_t + a_t`, exactly, so that nothing else is needed to see what a policy draws (:func:`draw_motions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.data import Demonstrations, read_lasa
from latentpg.policies import PlainPolicy
from latentpg.programs import LatentPolicy, Latents, act, conditionals
from latentpg.programs.capture import ACTION

EVERY = 20
"""Of the 1,000 steps of a motion every so many-th is kept."""

NUM_STEPS = 1000 // EVERY
"""Steps of a motion, T."""

THINNED = 2
"""Of the points of a path every so many-th is compared."""

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
"""Where the pen is from its start, in millimetres, and the percentage of the motion that is over."""

ACTIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
"""A displacement in millimetres. Without bounds, so that a policy's coordinates are the data's."""


def motions(shapes: Sequence[str] | None = None) -> Demonstrations:
    """Read the motions as displacements of the pen, seen from where each begins; the mode is the shape."""
    read = read_lasa(shapes=shapes, every=EVERY)
    assert read.dt is not None
    origin = read.obs[read.starts][read.episode]
    over = 100 * read.step.to(read.obs.dtype) / NUM_STEPS
    seen = torch.cat([read.obs - origin, over.unsqueeze(1)], 1)
    return replace(read, obs=seen, action=read.action * read.dt[read.episode].unsqueeze(1), dt=None)


def paths(demonstrations: Demonstrations) -> Float[NDArray[np.float64], "E P 2"]:
    """Return where the pen was in each motion, from its start on, P = T + 1 points."""
    return drawn(demonstrations.action.reshape(demonstrations.num_episodes, -1, 2))


def drawn(action: Float[Tensor, "E T 2"]) -> Float[NDArray[np.float64], "E P 2"]:
    """Sum displacements up to paths from (0, 0).

    >>> drawn(torch.tensor([[[1.0, 0.0], [1.0, 2.0]]])).tolist()
    [[[0.0, 0.0], [1.0, 0.0], [2.0, 2.0]]]
    """
    steps = action.double().numpy()
    return np.concatenate([np.zeros((len(steps), 1, 2)), steps.cumsum(1)], 1)


class Seen(nn.Module):
    """What networks see: the standardised observation, and sines and cosines of 1 to ``waves`` half turns a motion."""

    turns: Tensor

    def __init__(self, normalizer: nn.Module, *, waves: int = 6) -> None:
        """Take the training part's normaliser."""
        super().__init__()
        self.normalizer = normalizer
        self.register_buffer("turns", torch.pi * torch.arange(1, waves + 1, dtype=torch.float32))

    def forward(self, obs: Float[Tensor, "N S"]) -> Float[Tensor, "N F"]:
        """Encode every step; what is told beside place and percentage is standardised alone."""
        angle = obs[:, 2:3] / 100 * self.turns
        return torch.cat([self.normalizer(obs), angle.sin(), angle.cos()], 1)


@torch.no_grad()
def draw_motions(
    policy: LatentPolicy, number: int, *, steady: bool, told: Float[Tensor, "E C"] | None = None
) -> Float[NDArray[np.float64], "E P 2"]:
    """Draw z from the prior at the start, hold it, and let the pen go where the policy says.

    ``steady`` takes the decoder's mean at every step; otherwise each displacement is a draw, as in the likelihood.
    ``told`` is what the policy sees beside place and percentage, the same in all steps of a motion.
    """
    at = torch.zeros(number, 2)
    beside = torch.zeros(number, 0) if told is None else told
    held = act(policy, _seen(at, 0, beside)).latents
    taken = []
    for step in range(NUM_STEPS):
        obs = _seen(at, step, beside)
        law = policy.distribution(obs) if isinstance(policy, PlainPolicy) else _decoded(policy, obs, held)
        taken.append((law.mean if steady else law.sample()).reshape(number, 2))
        at = at + taken[-1]
    return drawn(torch.stack(taken, 1))


def _seen(at: Float[Tensor, "E 2"], step: int, beside: Float[Tensor, "E C"]) -> Float[Tensor, "E S"]:
    return torch.cat([at, torch.full((len(at), 1), 100 * step / NUM_STEPS), beside], 1)


def _decoded(policy: LatentPolicy, obs: Float[Tensor, "E S"], held: Latents) -> Distribution:
    return conditionals(policy, obs, {name: value.unsqueeze(0) for name, value in held.items()})[ACTION]


def dtw(one: Float[NDArray[np.float64], "*B P 2"], other: Float[NDArray[np.float64], "*B R 2"]) -> NDArray[np.float64]:
    r"""Return the mean distance, in millimetres, along the best alignment in time of two paths.

    .. math:: D_{ij} = \lVert x_i-y_j\rVert + \min(D_{i-1,j}, D_{i,j-1}, D_{i-1,j-1})

    from end to end, divided by the number of pairs of the alignment, the shortest among those that cost the same
    (H. Sakoe and S. Chiba, "Dynamic programming algorithm optimization for spoken word recognition", 1978). Leading
    dimensions broadcast.

    >>> line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    >>> float(dtw(line, line + [0.0, 3.0])), float(dtw(line, line[[0, 0, 1, 1, 2]]))
    (3.0, 0.0)
    """
    apart = np.sqrt(((one[..., :, None, :] - other[..., None, :, :]) ** 2).sum(-1))
    apart = np.moveaxis(apart, (-2, -1), (0, 1))
    cost = np.full_like(apart, np.inf)
    pairs = np.zeros_like(apart)
    for i in range(len(apart)):
        for j in range(apart.shape[1]):
            if i == j == 0:
                cost[0, 0], pairs[0, 0] = apart[0, 0], 1
                continue
            best, length = np.full(apart.shape[2:], np.inf), np.zeros(apart.shape[2:])
            for back, left in ((1, 1), (1, 0), (0, 1)):  # the diagonal first: it is the shortest
                if i >= back and j >= left:
                    better = cost[i - back, j - left] < best
                    best = np.where(better, cost[i - back, j - left], best)
                    length = np.where(better, pairs[i - back, j - left], length)
            cost[i, j], pairs[i, j] = best + apart[i, j], length + 1
    return cost[-1, -1] / pairs[-1, -1]


def distances(
    ones: Float[NDArray[np.float64], "N P 2"], others: Float[NDArray[np.float64], "M R 2"]
) -> Float[NDArray[np.float64], "N M"]:
    """Return the distance of every path of one set to every path of the other."""
    block = 16  # some 10^7 numbers at a time
    parts = [dtw(ones[start : start + block, None], others[None]) for start in range(0, len(ones), block)]
    return np.concatenate(parts)


def as_text(drawn: Float[NDArray[np.float64], "E P 2"]) -> list[str]:
    """Write paths for a result's file, to a tenth of a millimetre, a line each.

    >>> as_text(np.array([[[0.0, 0.0], [1.25, -20.0]]]))
    ['0,0 1.2,-20']
    """
    return [" ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in path) for path in drawn.tolist()]


def from_text(lines: Sequence[str]) -> Float[NDArray[np.float64], "E P 2"]:
    """Read what :func:`as_text` wrote.

    >>> from_text(["0,0 1.2,-20"]).tolist()
    [[[0.0, 0.0], [1.2, -20.0]]]
    """
    return np.array([[[float(x) for x in point.split(",")] for point in line.split(" ")] for line in lines])


@dataclass(frozen=True, eq=False)
class Judged:
    """N samples beside E demonstrations: each one's nearest shape, the distance, and whether it counts as that shape.

    ``apart [N, E]`` are the distances in millimetres, ``shape [N]`` that of the nearest demonstration. A sample counts
    where its nearest demonstration is no further than the shape's own demonstrations are from each other: the largest,
    over the seven, of the distance to the nearest fellow.
    """

    apart: Float[NDArray[np.float64], "N E"]
    shape: Int[NDArray[np.int64], " N"]
    counts: Bool[NDArray[np.bool_], " N"]

    @property
    def nearest(self) -> Float[NDArray[np.float64], " N"]:
        """Distance of each sample to its nearest demonstration."""
        return self.apart.min(1)

    @property
    def shapes(self) -> list[int]:
        """Shapes that at least one sample counts as."""
        return sorted({int(shape) for shape in self.shape[self.counts]})


def judge(samples: Float[NDArray[np.float64], "N P 2"], demonstrations: Demonstrations) -> Judged:
    """Hold samples against all demonstrations, whose paths are thinned as the samples are."""
    assert demonstrations.mode is not None
    shown, mode = paths(demonstrations)[:, ::THINNED], demonstrations.mode.numpy()
    apart = distances(samples, shown)
    shape = mode[apart.argmin(1)]
    spread = np.array([spread_of(shown[mode == each]) for each in range(int(mode.max()) + 1)])
    return Judged(apart, shape, apart.min(1) <= spread[shape])


def spread_of(fellows: Float[NDArray[np.float64], "E P 2"]) -> float:
    """Return the largest distance of a path to the nearest other one.

    >>> line = np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> spread_of(np.stack([line, line + [0.0, 1.0], line + [0.0, 5.0]]))
    4.0
    """
    apart = distances(fellows, fellows)
    np.fill_diagonal(apart, np.inf)
    return float(apart.min(1).max())
