"""Going on with a run of cloning: the same as never having stopped, for every objective."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentpg.cloning import CloningConfig, Prepared
from latentpg.cloning.commands import imitate_command, resume_run
from latentpg.errors import OptionError
from latentpg.estimators import PosteriorIS
from latentpg.imitation import OBJECTIVES, mean_log_prob
from latentpg.numerics.rng import seeded
from latentpg.runs import newest_checkpoint
from latentpg.training import read_metrics
from latentpg.training.cloned import read_cloned
from latentpg.training.log import Row
from tests.cloning.runs import EPISODE, OF_OBJECTIVE, file_of_steps, run, small, words
from tests.training.runs import after

pytestmark = pytest.mark.production  # whole runs: minutes with every annotation checked


@pytest.fixture(autouse=True)
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.cloning.loop.draw_figures", lambda *given: [])


@pytest.fixture
def measure_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the likelihood by one particle: what is measured at the end is not what is asked here."""

    def measured(built: Prepared, *, seed: int, check: Callable[[], None]) -> float:
        check()
        with seeded(seed):
            return float(mean_log_prob(built.policy, built.test, PosteriorIS(1)))

    monkeypatch.setattr("latentpg.cloning.loop.measure", measured)
    monkeypatch.setattr("latentpg.cloning.loop.result_of", lambda built, found: {"measured": found})
    monkeypatch.setattr("latentpg.cloning.loop.write_report", lambda built, found, folder, *given: folder)
    monkeypatch.setattr("latentpg.cloning.commands.lines_of", lambda found: [str(found)])


def told(folder: Path) -> list[Row]:
    """Return metrics without the clock's."""
    return [{name: value for name, value in row.items() if name != "time/seconds"} for row in read_metrics(folder)]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "seconds"}


def assert_same_runs(one: Path, two: Path) -> None:
    first, second = (newest_checkpoint(folder / "checkpoints") for folder in (one, two))
    assert first.step == second.step and first.state.keys() == second.state.keys()
    assert not [name for name, value in first.state.items() if not torch.equal(value, second.state[name])]
    assert told(one) == told(two) and result(one) == result(two)


def of(objective: str, **changes: object) -> CloningConfig:
    return small(objective=objective, **OF_OBJECTIVE[objective], num_epochs=3, rollouts=4, **changes)


def test_there_is_a_short_run_of_every_objective() -> None:
    assert OF_OBJECTIVE.keys() == OBJECTIVES.keys()


@pytest.mark.usefixtures("measure_little")
@pytest.mark.parametrize("objective", list(OF_OBJECTIVE))
def test_every_objective_goes_on_bit_for_bit(objective: str, tmp_path: Path) -> None:
    config = of(objective, checkpoint_every=1)
    assert run(config, tmp_path / "whole").finished
    stopped = run(config, tmp_path / "parts", stop=after(1))
    assert (stopped.epochs, stopped.finished, stopped.signal) == (1, False, 15)
    assert not result(tmp_path / "parts")["finished"]
    assert resume_run([str(tmp_path / "parts")]) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.usefixtures("measure_little")
def test_rows_densities_of_their_own_go_on_too(tmp_path: Path) -> None:
    config = small(policy="gaussian", per_datum=True, num_epochs=2, checkpoint_every=1, rollouts=0)
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop=after(1))
    assert resume_run([str(tmp_path / "parts")]) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    state = newest_checkpoint(tmp_path / "whole" / "checkpoints").state
    assert any(name.startswith("per_datum.") for name in state)


def test_a_run_stopped_while_it_was_measured_is_measured_later(tmp_path: Path) -> None:
    config = of("exact")
    stopped = run(config, tmp_path / "parts", stop=after(5))
    assert stopped.epochs == 3 and not stopped.finished and not result(tmp_path / "parts")["finished"]
    assert resume_run([str(tmp_path / "parts")]) == 0
    assert result(tmp_path / "parts")["finished"]


def test_what_is_measured_is_the_same_too(tmp_path: Path) -> None:
    config = small(policy="gaussian", num_epochs=2, checkpoint_every=1, rollouts=4)
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop=after(1))
    assert resume_run([str(tmp_path / "parts")]) == 0
    assert result(tmp_path / "whole")["collapse"]["information"]["upper"]["value"] > 0
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.usefixtures("measure_little")
def test_other_options_are_refused(tmp_path: Path) -> None:
    run(of("exact"), tmp_path / "run", stop=after(1))
    with pytest.raises(OptionError, match=r"learning_rate = 0\.5, and not 0\.001"):
        resume_run([str(tmp_path / "run"), "--learning-rate", "0.5"])
    with pytest.raises(OptionError, match="policy = plain, and not mixture"):
        resume_run([str(tmp_path / "run"), "--policy", "plain"])
    assert resume_run([str(tmp_path / "run"), "--learning-rate", "0.001"]) == 0


@pytest.mark.usefixtures("measure_little")
def test_other_data_are_refused(tmp_path: Path) -> None:
    file = file_of_steps(tmp_path / "shown.npz")
    folder = tmp_path / "run"
    assert imitate_command([*words(data=str(file), policy="plain", num_epochs=2), "--out", str(folder)]) == 0
    with np.load(file) as arrays:
        changed = {**arrays, "obs": arrays["obs"] + np.float32(1)}
    np.savez(file, **changed)
    with pytest.raises(OptionError, match="the demonstrations are not those that the run began with"):
        resume_run([str(folder)])


@pytest.mark.usefixtures("measure_little")
@pytest.mark.parametrize(("keep", "prefix"), [("best", "best_policy."), ("last", "policy.")])
def test_a_cloned_policy_is_read_as_it_was_kept(keep: str, prefix: str, tmp_path: Path) -> None:
    run(small(**EPISODE, keep=keep, rollouts=0), tmp_path / "run")
    found = read_cloned(tmp_path / "run")
    state = newest_checkpoint(tmp_path / "run" / "checkpoints").state
    assert found.policy == "episode" and found.env == "latentpg/Routes-v0" and found.network.hidden == (8,)
    assert {f"{prefix}{name}" for name in found.tensors} == {name for name in state if name.startswith(prefix)}
    assert all(torch.equal(value, state[prefix + name]) for name, value in found.tensors.items())
