"""The run: what it leaves behind, how it goes on, and how it ends when something goes wrong."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
import torch

from latentpg.errors import LatentPGError, OptionError
from latentpg.learners import LearningFault
from latentpg.numerics.rng import stream_seed
from latentpg.rollout import EnvironmentFault
from latentpg.runs import Checkpoint, load_checkpoint, named_checkpoint, newest_checkpoint
from latentpg.training import TrainingConfig, begin_run, evaluate, go_on, prepared, read_metrics, resolve, series, train
from latentpg.training.log import STEPS, Row
from latentpg.training.loop import Outcome
from latentpg.training.signals import Stop, never
from tests.training.runs import SMALL, after, files_of, no_figure, register_faulty, small


@pytest.fixture(autouse=True)
def draw_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_what_a_run_leaves_behind:
        monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def run(config: TrainingConfig, folder: Path, stop: Stop = never) -> Outcome:
    with prepared(config) as built:
        return train(config, built, begin_run(config, out=folder), stop=stop)


def last(folder: Path) -> Checkpoint:
    return newest_checkpoint(folder / "checkpoints")


def told(folder: Path) -> list[Row]:
    """Return metrics without the clock's."""
    clock = ("time/fps", "time/seconds")
    return [{name: value for name, value in row.items() if name not in clock} for row in read_metrics(folder)]


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    config = small()
    outcome = run(config, tmp_path / "run")
    assert (outcome.steps, outcome.updates, outcome.signal) == (160, 5, None)
    files = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").iterdir()} - {"tensorboard"}
    kept = {".lock", "config.toml", "run.json", "metrics.csv", "metrics.jsonl", "result.json", "figures", "checkpoints"}
    assert {name.rpartition("/")[2] for name in files} == kept
    rows = read_metrics(tmp_path / "run")
    assert [row[STEPS] for row in rows] == [0, 32, 64, 96, 128, 160]
    assert series(rows, "eval/mean_reward")[0] == [0, 64, 128, 160]  # at the start, at each crossing, at the end
    names = {"rollout/ep_rew_mean", "train/approx_kl", "train/clip_fraction", "train/ess", "time/fps", "time/updates"}
    assert names <= {name for row in rows[1:] for name in row}
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["finished"] and result["timesteps"] == 160
    assert result["evaluation"]["eval/mean_reward"] == rows[-1]["eval/mean_reward"]


def test_the_best_and_the_last_are_kept(tmp_path: Path) -> None:
    config = small()
    outcome = run(config, tmp_path / "run")
    steps, means = series(read_metrics(tmp_path / "run"), "eval/mean_reward")
    best = max(range(len(means)), key=lambda place: (means[place], place))
    assert (outcome.best, outcome.best_steps) == (means[best], steps[best])
    assert named_checkpoint(tmp_path / "run" / "checkpoints", "best").step == steps[best]
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 160


def test_an_evaluation_of_a_saved_policy_is_the_one_that_was_logged(tmp_path: Path) -> None:
    config = small()
    run(config, tmp_path / "run")
    saved = newest_checkpoint(tmp_path / "run" / "checkpoints")
    with prepared(config) as built:
        built.restore_policy(saved.state)
        seed = stream_seed(config.run.seed, "evaluation at 160")
        found = evaluate(built.evaluation_envs, built.policy, num_episodes=4, seed=seed)
    last = read_metrics(tmp_path / "run")[-1]
    assert {name: last[name] for name in found.metrics()} == found.metrics()


@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_going_on_is_the_same_as_never_having_stopped(stopped_after: int, tmp_path: Path) -> None:
    config = small(proposal="guide")  # with a guide to be taught, two normalisers, and rates that fall
    whole = run(config, tmp_path / "whole")
    outcome = run(config, tmp_path / "parts", after(stopped_after))
    assert outcome.signal == 15 and outcome.steps == 32 * stopped_after
    resumed = go_on(config, tmp_path / "parts", last(tmp_path / "parts"))
    one, two = (newest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert one.step == two.step == 160 and one.state.keys() == two.state.keys()
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
    assert told(tmp_path / "parts") == told(tmp_path / "whole")
    assert (resumed.best, resumed.best_steps) == (whole.best, whole.best_steps)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    run(small(), tmp_path / "one")
    run(small(seed=1), tmp_path / "two")
    assert told(tmp_path / "one") != told(tmp_path / "two")


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    config = small()
    run(config, tmp_path / "run")
    before = files_of(tmp_path / "run")
    assert go_on(config, tmp_path / "run", last(tmp_path / "run")).steps == 160
    assert files_of(tmp_path / "run") == before


def test_going_on_with_other_options_is_refused(tmp_path: Path) -> None:
    run(small(), tmp_path / "run", after(1))
    before = files_of(tmp_path / "run")
    with pytest.raises(OptionError, match=r"gamma = 0\.5, then 0\.99"):
        go_on(small(gamma=0.5), tmp_path / "run", last(tmp_path / "run"))
    assert files_of(tmp_path / "run") == before


def test_rows_of_several_updates_are_means(tmp_path: Path) -> None:
    single = run(small(checkpoint_every=1000), tmp_path / "one")
    run(small(checkpoint_every=1000, log_every=2), tmp_path / "two")
    ones, twos = told(tmp_path / "one"), told(tmp_path / "two")
    assert [row[STEPS] for row in twos] == [0, 64, 128, 160] and single.updates == 5
    for row, parts in zip(twos[1:], (ones[1:3], ones[3:5], ones[5:]), strict=True):
        mean = sum(part["train/approx_kl"] for part in parts) / len(parts)
        assert row["train/approx_kl"] == pytest.approx(mean, rel=1e-12)


def test_a_mistake_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="did you mean CartPole-v1"):
        run(small(env="CartPol-v1"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [(1e30, LearningFault, "is not finite"), (math.nan, EnvironmentFault, "gave a reward that is not finite")],
)
def test_a_fault_ends_the_run_and_says_how_things_stood(
    bad: float, error: type[LatentPGError], message: str, tmp_path: Path, registry: None
) -> None:
    config = small(env=register_faulty(bad=bad, start=60), normalize_reward=False)
    with pytest.raises(error, match=message):
        run(config, tmp_path / "run")
    fault = json.loads((tmp_path / "run" / "fault.json").read_text(encoding="utf-8"))
    assert message in fault["error"] and fault["timesteps"] == 96 and fault["update"] == 3
    assert fault["last_metrics"][STEPS] == 96
    dump = next((tmp_path / "run" / "fault").glob("step-*"))
    assert all(bool(value.isfinite().all()) for value in load_checkpoint(dump).state.values())
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 96
    assert (tmp_path / "run" / "metrics.csv").is_file() and not (tmp_path / "run" / "result.json").exists()


def test_an_observation_that_is_not_served_is_refused_before_anything_is_written(
    tmp_path: Path, registry: None
) -> None:
    with pytest.raises(OptionError, match="brings no vectorised class"):
        run(small(env=register_faulty(), vectorization_mode="native"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def small_grpo(**changes: object) -> TrainingConfig:
    shared = ("env", "num_envs", "batch_size", "hidden", "num_particles", "eval_episodes")
    values = {name: SMALL[name] for name in shared}
    return resolve({**values, "algo": "grpo", "latent": "episode", "total_timesteps": 20, **changes})


def test_a_held_latent_is_evaluated_as_it_acts(tmp_path: Path) -> None:
    config = small_grpo(eval_acting="decoder-mean")
    with pytest.raises(OptionError, match="evaluated as it acts"):
        run(config, tmp_path / "run")
    assert run(small_grpo(), tmp_path / "run").steps > 0
