"""Going on with a run: the same as never having stopped, for every learner, or the reason why not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import latentpg
from latentpg.errors import CheckpointError, OptionError
from latentpg.runs import Checkpoint, newest_checkpoint, save_checkpoint, write_toml
from latentpg.training import TrainingConfig, begin_run, known_values, prepared, read_metrics, resolve, train
from latentpg.training.commands import evaluate_command, resume_command, train_command
from latentpg.training.config import read_options
from latentpg.training.log import Row
from latentpg.training.loop import Outcome
from latentpg.training.parts import SELECTORS
from latentpg.training.resuming import restore
from latentpg.training.signals import Stop, never
from tests.training.runs import OF_ALGORITHM, after, files_of, no_figure, shortly, small, spelled

ROOT = Path(latentpg.__file__).parents[1]


@pytest.fixture(autouse=True)
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
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


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "seconds"}


def assert_same_runs(one: Path, two: Path) -> None:
    """Parameters, optimisers, statistics and whatever else there is, every row of metrics, and how it ended."""
    first, second = last(one), last(two)
    assert first.step == second.step and first.state.keys() == second.state.keys()
    differing = [name for name, value in first.state.items() if not torch.equal(value, second.state[name])]
    assert not differing
    assert told(one) == told(two)
    assert result(one) == result(two) and result(one)["exact_resume"] is True


def test_there_is_a_short_run_of_every_algorithm() -> None:
    assert OF_ALGORITHM.keys() == SELECTORS["algo"].keys()


@pytest.mark.parametrize("algo", list(OF_ALGORITHM))
def test_every_learner_goes_on_bit_for_bit(algo: str, tmp_path: Path) -> None:
    """By the command, and after two stops; something is remembered by each optimiser at the first."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_command([*spelled(shortly(algo)), "--out", str(whole)]) == 0
    config = resolve(read_options(whole / "config.toml"))
    stopped = run(config, parts, after(2))
    assert stopped.updates == 2 and any(name.startswith("agent.model.exp_avg") for name in last(parts).state)
    with prepared(config) as built:  # going on, and stopping again
        train(config, built, parts, saved=last(parts), stop=after(1))
    assert last(parts).step > stopped.steps
    assert resume_command([str(parts)]) == 0
    assert_same_runs(whole, parts)


@pytest.mark.parametrize(
    "algo", ["ppo", *(pytest.param(a, marks=pytest.mark.slow) for a in OF_ALGORITHM if a != "ppo")]
)
def test_asynchronous_environments_go_on_bit_for_bit(algo: str, tmp_path: Path) -> None:
    """And give what synchronous ones do."""
    options = shortly(algo, vectorization_mode="async")
    run(resolve(options), tmp_path / "whole")
    run(resolve(options), tmp_path / "parts", after(2))
    assert resume_command([str(tmp_path / "parts")]) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    run(resolve(shortly(algo)), tmp_path / "sync")
    assert told(tmp_path / "sync") == told(tmp_path / "whole")


@pytest.mark.production
@pytest.mark.parametrize(
    "algo", ["ppo", *(pytest.param(a, marks=pytest.mark.slow) for a in OF_ALGORITHM if a != "ppo")]
)
def test_another_process_goes_on_bit_for_bit(algo: str, tmp_path: Path) -> None:
    config = resolve(shortly(algo))
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", after(2))
    command = [sys.executable, "-m", "latentpg.cli", "resume", "parts"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "finished after" in ended.stdout and "exact_resume" not in ended.stdout
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


# where it cannot be the same


class Restless(gymnasium.Env[Any, Any]):
    """Episodes of seven steps whose observations hang on how many steps this process has seen."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    seen = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Restless.seen, self.age = Restless.seen + 1, self.age + 1
        return np.full(1, Restless.seen, np.float32), 1.0, self.age == 7, False, {}


def register_restless() -> None:
    def make(**given: Any) -> gymnasium.Env[Any, Any]:  # noqa: ANN401 (what Gymnasium hands on)
        return Restless()

    gymnasium.register("Restless-v0", entry_point=make)


@pytest.mark.parametrize("algo", ["ppo", "a2c", "online-actor-critic"])
def test_an_environment_that_cannot_be_replayed_is_told(
    algo: str, tmp_path: Path, registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on with new episodes, and says so, then and ever after."""
    register_restless()
    folder = tmp_path / "run"
    run(resolve(shortly(algo, env="Restless-v0")), folder, after(2))
    assert result(folder)["exact_resume"] is True
    steps = last(folder).step
    with prepared(resolve(read_options(folder / "config.toml"))) as built:
        outcome = train(resolve(read_options(folder / "config.toml")), built, folder, saved=last(folder), stop=after(1))
    assert f"at {steps} steps" in outcome.inexact and "cannot be brought back" in outcome.inexact
    saved = last(folder)
    assert saved.step > steps and int(saved.state["collector.age"].max()) <= 7
    assert resume_command([str(folder)]) == 0
    assert "exact_resume: false" in capsys.readouterr().out
    found = result(folder)
    assert found["finished"] and found["exact_resume"] is False
    assert found["exact_resume_why"].count("cannot be brought back") == 2
    assert [row["time/total_timesteps"] for row in told(folder)] == sorted(
        {row["time/total_timesteps"] for row in told(folder)}
    )


def test_groups_of_whole_episodes_need_no_replay(tmp_path: Path, registry: None) -> None:
    register_restless()
    folder = tmp_path / "run"
    run(resolve(shortly("reinforce", env="Restless-v0", total_timesteps=60)), folder, after(1))
    assert resume_command([str(folder)]) == 0
    assert result(folder)["exact_resume"] is True


# other options than it began with


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--no-normalize-reward"], "normalize_reward = False, and not True"),
        (["--no-normalize-observations"], "normalize_observations = False, and not True"),
        (["--gamma", "0.5"], "gamma = 0.5, and not 0.99"),
        (["--env", "Acrobot-v1"], "env = Acrobot-v1, and not CartPole-v1"),
        (["--estimator", "posterior-is"], "estimator = posterior-is, and not conditional-is"),
    ],
)
def test_other_options_are_refused_by_the_command(changed: list[str], message: str, tmp_path: Path) -> None:
    run(small(), tmp_path / "run", after(1))
    before = files_of(tmp_path / "run")
    with pytest.raises(OptionError) as caught:
        resume_command([str(tmp_path / "run"), *changed])
    assert message in str(caught.value) and "no option changed" in str(caught.value)
    assert files_of(tmp_path / "run") == before


def test_an_edited_configuration_is_refused(tmp_path: Path) -> None:
    """The checkpoint says what it was written under."""
    config = small(normalize_reward=False)
    run(config, tmp_path / "run", after(1))
    write_toml(tmp_path / "run" / "config.toml", known_values(small(normalize_reward=True)))
    before = files_of(tmp_path / "run")
    with pytest.raises(OptionError, match="normalize_reward = True, then False"):
        resume_command([str(tmp_path / "run")])
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({"normalize_reward": False}, {"normalize_reward": True}, r"without scaler\.[\s\S]*normalize_reward"),
        ({"normalize_reward": True}, {"normalize_reward": False}, r"with scaler\.[\s\S]*normalize_reward"),
        ({"normalize_observations": False}, {"normalize_observations": True}, r"without [\s\S]*"),
        ({"hidden": [8]}, {"hidden": [9]}, r"\[8, 4\], not \[9, 4\]"),
        ({"num_envs": 2}, {"num_envs": 3}, r"collector\.age \[2\], not \[3\]"),
    ],
)
def test_a_state_of_other_options_is_refused_before_anything_moves(
    then: dict[str, Any], now: dict[str, Any], message: str
) -> None:
    """Whatever the facts beside it say."""
    with prepared(small(**then)) as built:
        built.learner.update()
        state = built.learner.state()
    with prepared(small(**now)) as built:
        before = built.learner.state()
        with pytest.raises(OptionError, match=message):
            restore(built.learner, state)
        after_it = built.learner.state()
        assert all(torch.equal(value, after_it[name]) for name, value in before.items())


def test_a_reference_policy_that_was_not_kept_is_named() -> None:
    with prepared(resolve(shortly("grpo", kl_coefficient=0.0, reference_every=None))) as built:
        state = built.learner.state()
    with prepared(resolve(shortly("grpo"))) as built, pytest.raises(OptionError, match=r"kl_coefficient"):
        restore(built.learner, state)


def test_an_option_that_came_later_has_its_default(tmp_path: Path) -> None:
    """A checkpoint of a version that did not know it yet goes on."""
    config = small()
    run(config, tmp_path / "run", after(1))
    saved = last(tmp_path / "run")
    facts = {**saved.facts, "config": {n: v for n, v in saved.facts["config"].items() if n != "clip_range"}}
    with prepared(config) as built:
        built.learner.restore(saved.state)
        built.learner.update()
        save_checkpoint(tmp_path / "run" / "checkpoints", built.learner.state(), facts, step=saved.step + 32)
    assert resume_command([str(tmp_path / "run")]) == 0
    assert result(tmp_path / "run")["finished"]


# the folder


def test_the_folder_says_name_and_one_that_says_study_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(small(), folder, after(1))
    text = (folder / "config.toml").read_text(encoding="utf-8")
    assert 'name = "CartPole-v1-ppo"' in text and "study" not in text
    old = text.replace('name = "', 'study = "', 1)
    (folder / "config.toml").write_text(old, encoding="utf-8")
    assert evaluate_command([str(folder), "--episodes", "4"]) == 0
    assert resume_command([str(folder)]) == 0
    assert result(folder)["finished"]


@pytest.mark.parametrize("command", [resume_command, evaluate_command])
def test_a_checkpoint_of_another_version_is_refused(
    command: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run(small(), folder, after(1))
    with prepared(small()) as built, monkeypatch.context() as later:
        later.setattr("latentpg.runs.manifest.FORMAT_VERSION", 2)
        save_checkpoint(folder / "checkpoints", built.learner.state(), {}, step=10_000)
    before = files_of(folder)
    with pytest.raises(CheckpointError, match=r"another version[\s\S]*format_version 1[\s\S]*format_version 2"):
        command([str(folder)])
    assert files_of(folder) == before


@pytest.mark.parametrize("command", [resume_command, evaluate_command])
def test_a_folder_of_another_version_is_refused(command: Callable[[list[str]], int], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('format_version = 2\nenv = "CartPole-v1"\n', encoding="utf-8")
    with pytest.raises(OptionError, match=r"another version of the format[\s\S]*that wrote it"):
        command([str(tmp_path)])
