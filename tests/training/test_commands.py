"""``latentpg train``, ``evaluate`` and ``resume`` from their words to what they print and leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

import latentpg
from latentpg.errors import CheckpointError, LatentPGError, OptionError, StudyError
from latentpg.training import read_metrics
from latentpg.training.commands import evaluate_command, resume_command, train_command
from tests.training.runs import files_of, no_figure, register_faulty, words

ROOT = Path(latentpg.__file__).parents[1]


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train_command([*words(), "--out", str(folder)]) == 0
    return folder


def test_a_run_ends_with_paths_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_command([*words(), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "finished after 160 of 160 steps, 5 updates" in out and "best" in out
    assert f"next: latentpg evaluate {tmp_path / 'run'}" in out
    paths = re.findall(r"^(?:metrics|figure |saved  |run    ) (.+)$", out, re.M)
    assert len(paths) == 6 and all(Path(path).exists() for path in paths)
    assert "160/160 steps" in err and "left: " in err and "KL" in err


def test_an_evaluation_is_printed_and_kept(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(trained), "--episodes", "5", "--acting", "decoder-mean", "--checkpoint", "best", "--seed", "7"]
    assert evaluate_command(asked) == 0
    out = capsys.readouterr().out
    assert "over 5 episodes, decoder-mean" in out
    file = Path(out.split("written to ")[1].strip())
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert len(kept["returns"]) == 5 and kept["acting"] == "decoder-mean" and kept["seed"] == 7
    assert f"mean return {sum(kept['returns']) / 5:.2f}," in out
    before = file.read_bytes()
    assert evaluate_command(asked) == 0 and file.read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(trained)
    assert resume_command([str(trained), "--num-steps", "16"]) == 0
    assert "finished after 160" in capsys.readouterr().out
    assert files_of(trained) == before


@pytest.mark.parametrize(
    ("command", "rest", "message"),
    [
        (resume_command, ["--num-steps", "32"], "num_steps = 32, and not 16"),
        (resume_command, ["--algo", "grpo"], "algo = grpo, and not ppo"),
        (resume_command, ["--num-stepz", "32"], "did you mean num_steps"),
        (resume_command, ["--num-workers", "x"], "an integer"),
        (evaluate_command, ["--episodes", "3"], "four episodes or more"),
        (evaluate_command, ["--episode", "9"], "did you mean episodes"),
    ],
)
def test_mistakes_leave_a_run_as_it_was(command: object, rest: list[str], message: str, trained: Path) -> None:
    before = files_of(trained)
    with pytest.raises(OptionError) as caught:
        command([str(trained), *rest])  # type: ignore[operator]
    assert message in str(caught.value)
    assert files_of(trained) == before


@pytest.mark.parametrize("command", [resume_command, evaluate_command])
def test_a_folder_without_a_run_is_refused(command: object, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="folder comes first"):
        command(["--seed", "1"])  # type: ignore[operator]
    with pytest.raises(StudyError, match="no such folder"):
        command([str(tmp_path / "nowhere")])  # type: ignore[operator]
    (tmp_path / "config.toml").write_text('study = "quickstart"\n', encoding="utf-8")
    with pytest.raises(StudyError, match="no training run"):
        command([str(tmp_path)])  # type: ignore[operator]
    (tmp_path / "config.toml").write_text('env = "CartPole-v1"\n', encoding="utf-8")
    with pytest.raises(CheckpointError):
        command([str(tmp_path)])  # type: ignore[operator]


@pytest.mark.parametrize("words", [["--help"], ["RUN", "-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert resume_command(words) == 0
    assert "usage: latentpg resume RUN" in capsys.readouterr().out
    with pytest.raises(SystemExit) as leave:
        evaluate_command(words)
    assert leave.value.code == 0 and "--episodes" in capsys.readouterr().out


def test_a_run_folder_is_not_written_over(trained: Path) -> None:
    before = files_of(trained)
    with pytest.raises(StudyError, match="is not empty"):
        train_command([*words(), "--out", str(trained)])
    assert files_of(trained) == before


MODULE = """
from pathlib import Path
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
Path(__file__).with_name("executed").touch()
gymnasium.register("Own-v0", entry_point=CartPoleEnv, max_episode_steps=20)
"""


def test_no_environments_id_imports_a_module_unless_the_user_says_so(
    tmp_path: Path, registry: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = str(tmp_path / "run")
    asked = [*words(env="own_module:Own-v0", total_timesteps=32), "--out", folder]
    with pytest.raises(OptionError, match="--trust-env"):
        train_command(asked)
    assert not (tmp_path / "executed").exists() and not Path(folder).exists()
    assert train_command([*asked, "--trust-env"]) == 0
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    monkeypatch.delitem(sys.modules, "own_module")
    for command in (evaluate_command, resume_command):  # the folder names the module, and the user does not
        with pytest.raises(OptionError, match="--trust-env"):
            command([folder])
    assert not (tmp_path / "executed").exists()
    gymnasium.registry.pop("Own-v0")
    assert evaluate_command([folder, "--episodes", "4", "--trust-env"]) == 0
    assert (tmp_path / "executed").exists()


def test_seeds_make_runs_of_their_own_and_a_learning_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    folder = tmp_path / "runs"
    assert train_command([*words(), "--seeds", "0:3", "--out", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {
        *(f"seed-{k}" for k in range(3)),
        "config.toml",
        "run.json",
        "figures",
        ".lock",
    }
    table = (folder / "figures" / "learning_curve.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "step,value,low,high,seed-0,seed-1,seed-2,format_version" and len(table) == 5
    alone = tmp_path / "alone"
    assert train_command([*words(seed=2), "--out", str(alone)]) == 0
    last, other = read_metrics(folder / "seed-2")[-1], read_metrics(alone)[-1]
    assert {n: v for n, v in last.items() if not n.startswith("time/")} == {
        n: v for n, v in other.items() if not n.startswith("time/")
    }
    capsys.readouterr()
    assert evaluate_command([str(folder), "--episodes", "4"]) == 0
    assert capsys.readouterr().out.count("mean return") == 3
    (folder / "seed-1" / "result.json").unlink()  # as if it had been killed before its end
    assert resume_command([str(folder)]) == 0
    assert (folder / "seed-1" / "result.json").is_file()


def test_a_seed_that_fails_leaves_the_others_alone(tmp_path: Path, registry: None) -> None:
    env = register_faulty(bad=1e30, start=60)
    asked = [*words(env=env, normalize_reward=False), "--seeds", "0:2", "--out", str(tmp_path / "runs")]
    with pytest.raises(StudyError, match="the runs of seeds 0, 1 failed") as caught:
        train_command(asked)
    assert "is not finite" in str(caught.value)
    assert all((tmp_path / "runs" / f"seed-{seed}" / "fault.json").is_file() for seed in range(2))


@pytest.mark.parametrize(
    ("rest", "error", "message"),
    [
        (["--seeds", "0:2", "--num-workers", "0"], OptionError, "an integer >= 1"),
        (["--seeds", "0:0"], OptionError, "not a list of seeds"),
        (["--env", "CartPol-v1"], OptionError, "did you mean CartPole-v1"),
        (["--seeds", "0:2", "--env", "CartPol-v1"], OptionError, "did you mean CartPole-v1"),
        (["--vectorization-mode", "native", "--algo", "grpo"], OptionError, "num_steps"),
    ],
)
def test_mistakes_leave_nothing_behind(
    rest: list[str], error: type[LatentPGError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        train_command([*words(), "--out", str(tmp_path / "run"), *rest])
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def started(tmp_path: Path, *rest: str) -> subprocess.Popen[str]:
    """Start a long run in a process of its own and wait until it has learnt something."""
    long = words(total_timesteps=10_000_000, eval_every=10_000_000)
    command = [sys.executable, "-m", "latentpg.cli", "train", *long, "--out", "run", *rest]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("run/**/step-*64")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.production
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_with_a_checkpoint_to_go_on_from(number: int, status: int, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"to go on: latentpg resume {tmp_path / 'run'}" in out and "Traceback" not in err
    steps = int(re.findall(r"stopped after (\d+) of", out)[0])
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps:010}").is_dir()


@pytest.mark.slow
@pytest.mark.production
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_ends_the_runs_of_several_processes(tmp_path: Path) -> None:
    with started(tmp_path, "--seeds", "0:2", "--num-workers", "2") as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "to go on: latentpg resume" in out and "Traceback" not in err
    assert not (tmp_path / "run" / ".stop").exists()


@pytest.mark.slow
def test_processes_give_the_same_runs(tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        assert train_command([*words(), "--seeds", "0:2", "--num-workers", workers, "--out", str(tmp_path / name)]) == 0
    one, two = ((tmp_path / name / "figures" / "learning_curve.csv").read_bytes() for name in ("one", "two"))
    assert one == two
