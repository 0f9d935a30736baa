"""A folder that is read by somebody else: what it must hold, and what it is refused for."""

from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from torch import nn

from latentpg.cloning import prepared
from latentpg.cloning.folders import begin_run, has_finished, open_run
from latentpg.cloning.loop import clone
from latentpg.errors import OptionError, StudyError
from latentpg.training.cloned import is_cloning, read_cloned
from tests.cloning.runs import small
from tests.training.runs import after


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one epoch, which was not measured."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = small(num_epochs=3, checkpoint_every=1, policy="two-level")
    with prepared(config) as built:
        clone(built, begin_run(config, out=folder, built=built), stop=after(1))
    return folder


def test_the_policy_is_built_again_for_its_spaces(stopped: Path) -> None:
    found = read_cloned(stopped, which="last")
    assert (found.policy, found.env, found.values["num_epochs"]) == ("two-level", "latentpg/Routes-v0", 3)
    with prepared(open_run(stopped, trusted=False).config) as built:
        again = found.build(*built.spaces)
    assert isinstance(again, nn.Module)
    assert all(torch.equal(value, found.tensors[name]) for name, value in again.state_dict().items())


def test_other_spaces_are_refused(stopped: Path) -> None:
    with pytest.raises(OptionError, match="it was cloned for other spaces"):
        read_cloned(stopped).build(spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (2,)))


def test_what_is_no_cloning_run_is_refused(tmp_path: Path, stopped: Path) -> None:
    assert is_cloning(stopped) and not is_cloning(tmp_path) and not has_finished(stopped)
    with pytest.raises(StudyError, match="holds no cloning run"):
        read_cloned(tmp_path)
    with pytest.raises(StudyError, match="holds no cloning run"):
        open_run(tmp_path, trusted=False)
    with pytest.raises(OptionError, match="expected: best or last"):
        read_cloned(stopped, which="worst")


def test_a_folder_of_seeds_says_where_the_runs_are(tmp_path: Path) -> None:
    begin_run(small(), out=tmp_path / "runs", seeds=(3, 5))
    assert open_run(tmp_path / "runs", trusted=False).seeds == (3, 5)
    with pytest.raises(StudyError, match="one run for each seed"):
        read_cloned(tmp_path / "runs")


@pytest.mark.parametrize("seeds", ["[]", "[-1]", '"0:3"', "[true]"])
def test_seeds_of_a_folder_are_integers(tmp_path: Path, seeds: str) -> None:
    text = f'data = "x.npz"\nobjective = "exact"\npolicy = "mixture"\nseeds = {seeds}\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match="a list of integers"):
        open_run(tmp_path, trusted=False)


def test_a_module_is_imported_on_the_users_word_alone(tmp_path: Path) -> None:
    text = 'data = "x.npz"\nobjective = "exact"\npolicy = "mixture"\nenv = "mine:Env-v0"\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match="would import and so execute the module mine"):
        open_run(tmp_path, trusted=False)
    assert open_run(tmp_path, trusted=True).config.selection.env == "mine:Env-v0"
