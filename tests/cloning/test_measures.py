"""What is measured of a cloned policy, and how it is told and drawn."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentpg.cloning import draw_figures, measure, prepared
from latentpg.cloning.drawing import colours_of
from latentpg.cloning.latents import Axes, Codes, latents_by_mode, principal_axes
from latentpg.cloning.measures import MOST_MEASURED, first_episodes, log_jacobian_of, measured_episodes, scale_of
from latentpg.cloning.telling import lines_of, result_of
from latentpg.imitation import FitRows
from latentpg.policies.heads import BoxHead
from tests.cloning.runs import file_of_steps, small


@pytest.fixture
def avoiding() -> dict[str, object]:
    return {"data": "scripted:latentpg/Avoiding-v0", "split": [0.5, 0.25, 0.25]}


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_scale_is_in_both_units_and_beta_widens_it(avoiding: dict[str, object]) -> None:
    with prepared(small(**avoiding, policy="gaussian", beta=4.0, min_log_std=-5.0)) as built:
        assert isinstance(built.policy, nn.Module)
        head = next(each for each in built.policy.modules() if isinstance(each, BoxHead))
        with torch.no_grad():
            head.log_std.copy_(torch.tensor([-1.0, -2.0]))
        found = scale_of(built)
        jacobian = log_jacobian_of(built)
    sigma = [math.exp(-1) + math.exp(-5), math.exp(-2) + math.exp(-5)]
    assert found is not None and found.floor == pytest.approx(math.exp(-5))
    assert found.coordinates == pytest.approx(sigma) and found.units == pytest.approx([0.015 * s for s in sigma])
    assert found.effective == pytest.approx(2 * math.sqrt(sigma[0] * sigma[1]))
    assert found.weight == pytest.approx(2 * 4 * sigma[0] * sigma[1])
    assert jacobian == pytest.approx(-2 * math.log(0.015))
    assert "floor of 0.00674" in found.lines()[0]


def test_exact_likelihood_weighs_nothing() -> None:
    with prepared(small()) as built:
        found = scale_of(built)
    assert found is not None and found.weight is None and len(found.lines()) == 1


def test_discrete_actions_have_neither_scale_nor_jacobian(tmp_path: Path) -> None:
    file = file_of_steps(tmp_path / "shown.npz", action=np.arange(60) % 3)
    with prepared(small(data=str(file))) as built:
        assert scale_of(built) is None and log_jacobian_of(built) == 0.0
        found = measure(built, seed=0)
    assert found.likelihood.likelihood.kind == "exact" and found.scale is None and found.outcome is None
    json.dumps(result_of(built, found))


def test_a_policy_without_a_latent_is_measured_in_closed_form() -> None:
    with prepared(small(policy="plain", rollouts=0)) as built:
        found = measure(built, seed=0)
    assert found.likelihood.likelihood.kind == "exact"
    assert found.collapse is None and found.curve is None and found.outcome is None


def test_a_continuous_latent_is_bounded_and_told_with_its_gap() -> None:
    config = small(policy="gaussian", latent_size=4, rollouts=0, annealing_temperatures=3, annealing_chains=2)
    with prepared(config) as built:
        found = measure(built, seed=0)
        again = measure(built, seed=0)
    text = "\n".join(lines_of(found))
    assert found.gap is not None and found.curve is not None and found.collapse is not None
    assert found.gap.gap.value > 0 and [point.num_particles for point in found.curve.points] == [1, 4]
    assert text == "\n".join(lines_of(again))
    for words in ("lower bound", "the Jacobian's", "dreamed rows", "log K = ", "4 Gaussian dimensions", "squared MMD"):
        assert words in text
    told = result_of(built, found)
    assert told["likelihood"]["kind"] == "lower bound" and len(told["collapse"]["kl"]["z"]) == 4
    assert told["likelihood"]["a_row"]["value"] == found.likelihood.likelihood.per_row.value


def test_the_first_episodes_are_taken_whole() -> None:
    with prepared(small()) as built:
        some = first_episodes(built.test, 4)
        assert some.episode.unique().tolist() == [0, 1, 2, 3]
        assert some.size == int(built.split.test.lengths[:4].sum())


def test_no_more_is_measured_than_there_is_time_for() -> None:
    rows = FitRows(torch.zeros(9000, 1), torch.zeros(9000, 1), torch.arange(9000) // 1500)
    assert MOST_MEASURED == 4000 and measured_episodes(rows, 100) == 2 and measured_episodes(rows, 2) == 2
    short = FitRows(torch.zeros(9000, 1), torch.zeros(9000, 1), torch.arange(9000) // 1000)
    assert measured_episodes(short, 100) == 4 and measured_episodes(short, 3) == 3


def test_axes_are_principal() -> None:
    points = torch.randn(40, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)
    placed, share = principal_axes(points)
    assert share[0] > 0.8 and float((placed[:, 0] * placed[:, 1]).sum()) == pytest.approx(0.0, abs=1e-9)
    values = torch.linalg.eigvalsh((points - points.mean(0)).T @ (points - points.mean(0)))
    assert placed[:, 0].square().sum().item() == pytest.approx(values[-1].item())
    alone, only = principal_axes(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    assert alone[:, 1].tolist() == [0.0, 0.0] and only == pytest.approx((1.0, 0.0))


def test_the_latent_space_is_told_by_mode() -> None:
    with prepared(small(policy="episode", latent_size=3)) as built:
        found = latents_by_mode(built)
        assert isinstance(found, Axes) and found.points.shape == (12, 2)
        assert built.split.train.mode is not None and found.mode.tolist() == built.split.train.mode.tolist()
    with prepared(small(policy="episode", latent_kind="codes", num_codes=5)) as built:
        codes = latents_by_mode(built)
        assert isinstance(codes, Codes) and codes.share.shape == (3, 5)
        np.testing.assert_allclose(codes.share.sum(1), 1.0)
    with prepared(small(policy="plain")) as built:
        assert latents_by_mode(built) is None


def test_modes_have_colours_of_their_own() -> None:
    assert len(set(colours_of(7))) == 7 and len(set(colours_of(24))) == 24


def test_figures_show_what_their_tables_say(tmp_path: Path) -> None:
    with prepared(small(policy="mixture", rollouts=6)) as built:
        rows = [{"time/total_timesteps": 1, **built.cloner.update()}]
        found = measure(built, seed=0)
        drawn = {each.name: each for each in draw_figures(built, found, rows, tmp_path)}
        lengths = built.split.train.lengths
    assert list(drawn) == ["samples", "modes", "training", "latents", "likelihood"]
    assert all(each.png.is_file() and each.svg.read_bytes() == each.svg_text for each in drawn.values())
    tables = {name: table_of(each.csv) for name, each in drawn.items()}
    shown = [row for row in tables["samples"] if row["whose"] == "demonstration"]
    assert len(shown) == int(lengths.sum())
    assert found.outcome is not None and found.outcome.behaviour is not None
    assert [float(row["successes"]) for row in tables["modes"]] == found.outcome.behaviour.counts.tolist()
    assert found.curve is not None
    bounds = [float(row["bound"]) for row in tables["likelihood"]]
    exact = found.likelihood.likelihood.per_row.value
    assert bounds == pytest.approx([*(point.bound.value for point in found.curve.points), exact])


def test_without_an_environment_actions_are_drawn(tmp_path: Path) -> None:
    with prepared(small(data=str(file_of_steps(tmp_path / "shown.npz")), policy="gaussian")) as built:
        rows = [{"time/total_timesteps": 1, **built.cloner.update()}]
        found = measure(built, seed=0)
        drawn = [each.name for each in draw_figures(built, found, rows, tmp_path / "figures")]
    assert drawn == ["samples", "training", "latents", "likelihood"]
    table = table_of(tmp_path / "figures" / "samples.csv")
    assert {row["whose"] for row in table} == {"demonstration", "policy"}
