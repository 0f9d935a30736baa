"""Runs whose workers learn together: one writes, all end together, and what was stopped goes on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from latentpg.errors import OptionError
from latentpg.learners.faults import WorkerFault
from latentpg.learners.parallel import Group
from latentpg.learners.workers import check_alike
from latentpg.runs import Checkpoint, newest_checkpoint
from latentpg.training import TrainingConfig, begin_run, prepared, read_metrics, resolve, train
from latentpg.training.commands import evaluate_command, resume_command, train_command
from latentpg.training.loop import Outcome
from latentpg.training.place import OF_WORKER, Place, agreed_signal, gathered_state, members_of, state_of_worker
from latentpg.training.resuming import OF_EPISODES
from latentpg.training.signals import Stop, never
from tests.learners.crew import in_threads
from tests.training.runs import after, no_figure, shortly, spelled

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    monkeypatch.setattr("latentpg.training.preparing.one_thread", nullcontext)  # torch's threads are all workers'


def options_of(algo: str, **changes: object) -> TrainingConfig:
    more = {"num_groups": 2} if algo == "grpo" else {}
    return resolve({**shortly(algo), **more, **changes})


def run(
    config: TrainingConfig,
    folder: Path,
    stop: Callable[[int], Stop] = lambda rank: never,
    saved: Checkpoint | None = None,
    size: int = 2,
) -> list[Outcome]:
    def work(group: Group) -> Outcome:
        with prepared(config, place=Place(group)) as built:
            if saved is None and group.rank == 0:
                begin_run(config, out=folder)
            mine = folder if group.rank == 0 else folder / "nobody writes here"
            return train(config, built, mine, saved=saved, stop=stop(group.rank))

    return in_threads(work, size)


def last(folder: Path) -> Checkpoint:
    return newest_checkpoint(folder / "checkpoints")


def told(folder: Path) -> list[dict[str, Any]]:
    clock = ("time/fps", "time/seconds")
    return [{name: value for name, value in row.items() if name not in clock} for row in read_metrics(folder)]


@pytest.mark.parametrize(
    "algo", ["ppo", "grpo", *(pytest.param(each, marks=pytest.mark.slow) for each in ("a2c", "reinforce"))]
)
def test_what_was_stopped_goes_on_bit_for_bit(algo: str, tmp_path: Path) -> None:
    """Each worker's environments, rewards' statistics and streams are where they were; stopping one stops all."""
    config, whole, parts = options_of(algo), tmp_path / "whole", tmp_path / "parts"
    first, second = run(config, whole)
    assert (first.steps, first.updates, first.best) == (second.steps, second.updates, second.best)
    assert first.files and not second.files
    stopped = run(config, parts, lambda rank: after(2) if rank == 1 else never)
    assert [outcome.updates for outcome in stopped] == [2, 2] and [each.signal for each in stopped] == [15, 15]
    run(config, parts, saved=last(parts))
    one, two = last(whole), last(parts)
    assert one.state.keys() == two.state.keys() and not [
        n for n in one.state if not torch.equal(one.state[n], two.state[n])
    ]
    assert told(whole) == told(parts)
    result = json.loads((parts / "result.json").read_text())
    assert result["workers"] == 2 and result["exact_resume"] is True and result["finished"] is True
    assert not (whole / "nobody writes here").exists()


def test_another_number_of_workers_is_refused(tmp_path: Path) -> None:
    run(config := options_of("ppo"), tmp_path / "run", lambda rank: after(1))
    with pytest.raises(OptionError, match=r"as many workers.*\n.*2 workers\n.*1\n.*torchrun --nproc-per-node 2"):
        resume_command([str(tmp_path / "run")])
    assert evaluate_command([str(tmp_path / "run"), "--episodes", "4"]) == 0  # the policy is nobody's own
    alone = last(tmp_path / "run")
    with pytest.raises(OptionError, match=r"1 worker\n"):
        in_threads(lambda group: state_of_worker(Place(group), alone.state, {}))
    assert config.run.num_envs == 2


def test_members_are_shared_out_evenly(tmp_path: Path) -> None:
    assert in_threads(lambda group: members_of(Place(group), 8)) == [4, 4]
    with pytest.raises(OptionError, match=r"`num_envs` cannot be shared.*\n.*multiple of the 2 workers\n.*3\n.*4"):
        run(options_of("ppo", num_envs=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_state_has_every_workers_own_parts() -> None:
    def work(group: Group) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        mine = {
            "agent.w": torch.ones(2),
            "collector.obs": torch.full((1,), float(group.rank)),
            "factor": torch.zeros(1),
        }
        state = gathered_state(place := Place(group), mine)
        return state, state_of_worker(place, state, {"workers": 2})

    (state, first), (_, second) = in_threads(work)
    assert sorted(state) == ["agent.w", "collector.obs", "factor", "worker-1.collector.obs", "worker-1.factor"]
    assert first["collector.obs"].item() == 0.0 and second["collector.obs"].item() == 1.0
    assert sorted(first) == sorted(second) == ["agent.w", "collector.obs", "factor"]


def test_what_belongs_to_episodes_is_each_workers_own() -> None:
    """Else a checkpoint would hold the first worker's only, and the others would go on from that."""
    assert all(any(name.startswith(stem) for stem in OF_WORKER) for name in OF_EPISODES)


def test_workers_that_differ_are_refused() -> None:
    with pytest.raises(WorkerFault, match=r"workers differ in their files\n.*\n.*another in worker 1"):
        in_threads(lambda group: check_alike(group, b"ab"[group.rank : group.rank + 1], what="their files"))
    in_threads(lambda group: check_alike(group, b"a", what="their files"))


def test_a_signal_to_one_stops_all() -> None:
    assert in_threads(lambda group: agreed_signal(Place(group), 15 if group.rank else None)) == [15, 15]
    assert in_threads(lambda group: agreed_signal(Place(group), None)) == [None, None]


def test_what_workers_cannot_share_out_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=r"each would do all of it"):
        train_command([*spelled(shortly("ppo")), "--seeds", "0:2", "--out", str(tmp_path / "run")])
    with pytest.raises(OptionError, match=r"latentpg evaluate: it is nothing"):
        evaluate_command([str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


# Processes that torchrun starts.


def torchrun(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "latentpg"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def workers_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the processes that torchrun has started, the first worker first."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            told = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((item for item in told if item.startswith(b"RANK=")), None)
        if parent == launcher.pid and rank is not None:
            found[rank] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.production
@pytest.mark.parametrize("how", ["first is killed", "second is killed", "SIGTERM"])
def test_a_launch_that_is_stopped_goes_on(how: str, tmp_path: Path) -> None:
    """A lost worker ends the job with a message, no process is left, and the newest checkpoint goes on to the end."""
    folder = tmp_path / "run"
    endless = spelled(shortly("ppo", total_timesteps=1_000_000, checkpoint_every=64, eval_every=500_000))
    launcher = torchrun(["train", *endless, "--out", str(folder), "--group-timeout", "30"])
    wait_for(lambda: (folder / "checkpoints").is_dir() and len(list((folder / "checkpoints").glob("step-*"))) > 1)
    pids = workers_of(launcher)
    assert len(pids) == 2
    if how == "SIGTERM":
        launcher.send_signal(signal.SIGTERM)
    else:
        os.kill(pids[how.startswith("second")], signal.SIGKILL)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode != 0, out + err
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20)
    saved = last(folder)
    assert saved.facts["workers"] == 2 and any(name.startswith("worker-1.collector.") for name in saved.state)
    if how == "second is killed":
        assert "waited for the others in vain" in err and (folder / "fault.json").is_file()
    if how == "SIGTERM":
        assert "stopped after" in out and "to go on" in out
    again = torchrun(["resume", str(folder)])
    wait_for(lambda: last(folder).step > saved.step)
    again.send_signal(signal.SIGTERM)
    out, err = again.communicate(timeout=60)
    assert "stopped after" in out, out + err


@pytest.mark.slow
@pytest.mark.production
def test_a_launch_is_what_threads_are(tmp_path: Path) -> None:
    """Two processes over gloo make the very files that two threads make, which the quick tests stand on."""
    config = options_of("ppo")
    run(config, tmp_path / "threads")
    launcher = torchrun(["train", *spelled(shortly("ppo")), "--out", str(tmp_path / "launch")])
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, out + err
    assert out.count("finished after") == 1 and out.count("run     ") == 1  # one speaks
    one, two = last(tmp_path / "threads"), last(tmp_path / "launch")
    assert one.state.keys() == two.state.keys() and not [
        n for n in one.state if not torch.equal(one.state[n], two.state[n])
    ]
    assert told(tmp_path / "threads") == told(tmp_path / "launch")
