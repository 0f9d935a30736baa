"""``latentpg record``: what lands in the file is what was done, and every mistake is one message and no file."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from latentpg import cli
from latentpg.data import load_npz
from latentpg.envs import avoiding, routes
from latentpg.envs.avoiding_demonstrator import demonstrate
from latentpg.errors import LatentPGError, OptionError, SpaceError, StudyError
from latentpg.policies import PlainPolicy
from latentpg.recording import (
    Played,
    Wanted,
    episodes_of_function,
    episodes_of_policy,
    load_expert,
    modes_of,
    record,
    record_command,
    shown_by_script,
)
from latentpg.rollout import make_envs
from latentpg.training.commands import train_command
from tests.cloning.runs import run as clone
from tests.cloning.runs import small
from tests.training.runs import words

AVOIDING, ROUTES = "latentpg/Avoiding-v0", "latentpg/Routes-v0"

EXPERTS = '''
import numpy as np

def straight(seed):
    """Go right, in a hurry."""
    return lambda obs: np.array([1.0, 0.0])

def moded(seed):
    class Go:
        mode = seed % 2
        def __call__(self, obs):
            return np.zeros(2, np.float32)
    return Go()

def badly_moded(seed):
    act = moded(seed)
    type(act).mode = "left"
    return act

def far(seed):
    return lambda obs: np.array([5.0, 0.0])

def angry(seed):
    def act(obs):
        raise RuntimeError("no more")
    return act

number = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder with a module of experts that can be imported."""
    (tmp_path / "my_experts.py").write_text(EXPERTS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_experts", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train_command([*words(), "--out", str(folder)]) == 0
    return folder


class Counting(gymnasium.Env[Any, Any]):
    """Three steps; the reward of each is the first digit of its episode's seed, and nothing hangs on the action."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(3, start=2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.gain, self.age = float(str(seed)[0]), 0
        return np.array([self.gain]), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        self.age += 1
        return np.array([self.gain + self.age]), self.gain, self.age == 3, False, {}


def test_a_script_records_every_mode_as_it_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demos.npz"
    assert (
        record_command(["--env", AVOIDING, "--expert", "scripted", "--episodes-per-mode", "1", "--out", str(out)]) == 0
    )
    kept, shown = load_npz(out), demonstrate(per_mode=1)
    assert np.array_equal(kept.obs.numpy(), shown.obs) and np.array_equal(kept.action.numpy(), shown.action)
    assert kept.mode is not None and kept.mode.tolist() == list(range(24))
    assert kept.lengths.tolist() == shown.lengths.tolist()
    text = capsys.readouterr().out
    assert f"24 episodes of {shown.lengths.min()} to {shown.lengths.max()} steps" in text and "24 modes" in text
    assert f"written to {out}" in text


def test_the_modes_of_a_script_are_those_its_observations_tell() -> None:
    for env_id, shown in (
        (AVOIDING, shown_by_script(AVOIDING, per_mode=1, seed=3)),
        (ROUTES, shown_by_script(ROUTES, episodes=6, seed=3)),
    ):
        told = modes_of(env_id, shown.obs, shown.lengths)
        assert told is not None and shown.mode is not None and told.tolist() == shown.mode.tolist()


def test_modes_are_known_for_all_episodes_or_for_none() -> None:
    good = shown_by_script(ROUTES, episodes=2)
    lost = torch.cat([good.obs, torch.zeros(3, 2)]), torch.cat([good.lengths, torch.tensor([3])])
    assert modes_of(ROUTES, *lost) is None  # the third never comes to the pillars
    assert modes_of("CartPole-v1", good.obs, good.lengths) is None


def test_a_trained_policy_is_recorded_as_the_environment_saw_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "demos.npz"
    asked = ["--env", "CartPole-v1", "--expert", str(run), "--episodes", "3", "--seed", "5", "--out", str(out)]
    assert record_command(asked) == 0
    kept = load_npz(out)
    assert kept.num_episodes == 3 and kept.mode is None and kept.reward is not None and bool((kept.reward == 1).all())
    # stepping the environment with the recorded actions gives the recorded observations again
    env = gymnasium.make("CartPole-v1")
    for episode in range(3):
        rows = kept.episode == episode
        env.reset(seed=0)
        env.unwrapped.state = kept.obs[rows][0].double().numpy()  # type: ignore[attr-defined]
        for action, seen in zip(kept.action[rows][:-1], kept.obs[rows][1:], strict=True):
            assert np.allclose(env.step(int(action))[0], seen.numpy(), atol=1e-5)
    assert record_command([*asked, "--overwrite"]) == 0
    again = load_npz(out)
    assert torch.equal(kept.obs, again.obs) and torch.equal(kept.action, again.action)
    assert record_command([*asked[:-3], "6", "--out", str(out), "--overwrite"]) == 0
    assert not torch.equal(kept.obs[0], load_npz(out).obs[0])


def test_actions_are_recorded_clipped_to_the_environments_bounds() -> None:
    envs = make_envs(ROUTES, 2)
    policy = PlainPolicy(envs.single_observation_space, envs.single_action_space)
    with torch.no_grad():
        policy.head.log_std.fill_(2.0)  # type: ignore[operator]
    space = envs.single_action_space
    assert isinstance(space, spaces.Box)
    played = next(episodes_of_policy(envs, policy, Wanted(1)))
    assert np.all(played.action <= space.high) and np.any(played.action == space.high)


def test_only_episodes_with_the_return_are_kept() -> None:
    def rewarded(*rewards: float) -> Played:
        return Played(np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32), np.array(rewards, np.float32))

    episodes = [rewarded(0, 1), rewarded(0, 0.5), rewarded(1, 1), rewarded(9, 9)]
    found = record(iter(episodes), Wanted(2, min_return=1.0), source="here")
    assert found.demonstrations.num_episodes == 2 and found.returns.tolist() == [1.0, 0.5, 2.0]
    assert found.demonstrations.reward is not None and found.demonstrations.reward.tolist() == [0, 1, 1, 1]
    told = "1 of 3 episodes were good enough, and 2 are wanted"
    with pytest.raises(OptionError, match=told):
        record(iter(episodes), Wanted(2, min_return=2.0, max_episodes=3), source="here")


def test_a_function_of_ones_own_plays_each_episode_anew() -> None:
    seeds: list[int] = []

    def make(seed: int) -> Callable[[Any], Any]:
        seeds.append(seed)
        steps = iter((2, 3, 4))
        return lambda obs: next(steps)

    wanted = Wanted(4, seed=1)
    found = record(episodes_of_function(Counting(), make, wanted), wanted, source="here").demonstrations
    assert found.action.tolist() == [2, 3, 4] * 4 and len(set(seeds)) == 4
    first = found.obs[found.step == 0, 0]
    assert found.obs[:, 0].tolist() == [value + age for value in first.tolist() for age in range(3)]
    assert found.reward is not None and torch.equal(found.reward, first.repeat_interleave(3))


def test_an_expert_tells_its_modes(here: Path) -> None:
    out = here / "demos.npz"
    asked = ["--env", ROUTES, "--expert", "my_experts:moded", "--trust-expert", "--episodes", "5", "--out", str(out)]
    assert record_command(asked) == 0
    mode = load_npz(out).mode
    assert mode is not None and set(mode.tolist()) <= {0, 1} and len(mode) == 5


def test_modes_of_an_expert_that_tells_none_are_told_by_the_environment(here: Path) -> None:
    out = here / "demos.npz"
    asked = ["--env", ROUTES, "--expert", "my_experts:straight", "--trust-expert", "--episodes", "2", "--out", str(out)]
    assert record_command([*asked, "--min-return", "1"]) == 0
    kept = load_npz(out)
    assert kept.mode is not None and kept.mode.tolist() == [1, 1]
    assert kept.lengths.tolist() == [len(kept.obs) // 2] * 2 and kept.action.unique(dim=0).tolist() == [[1.0, 0.0]]
    assert routes.route_of(kept.obs[:, :].numpy()) == 1 and avoiding.NUM_MODES == 24


AVOID, ROUTE = f"--env {AVOIDING} --out demos.npz", f"--env {ROUTES} --out demos.npz"
MINE = f"{ROUTE} --trust-expert --expert my_experts"


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ("", OptionError, "no `--env`"),
        (f"--env {AVOIDING}", OptionError, "no `--out`"),
        (f"{AVOID} --episode 3", OptionError, "unknown option"),
        (f"{AVOID} --episodes 0", OptionError, "`--episodes`"),
        (f"{AVOID} --episodes 25", OptionError, "a multiple of 24"),
        (f"{AVOID} --episodes 24 --episodes-per-mode 1", OptionError, "one of them"),
        (f"{AVOID} --seed -1", OptionError, "`--seed`"),
        (f"{AVOID} --min-return 1", OptionError, "keeps what succeeds"),
        (f"--env {AVOIDING} --out demos.txt", OptionError, "FILE.npz"),
        (f"--env {AVOIDING} --out no/demos.npz", OptionError, "a folder that is there"),
        (f"{ROUTE} --episodes-per-mode 1", OptionError, "draws the mode"),
        ("--env CartPole-v1 --out demos.npz", OptionError, "no script demonstrates CartPole-v1"),
        (f"{MINE}:far --env Kartpole-v1", OptionError, "unknown environment"),
        ("--env a_module:Env-v0 --out demos.npz", OptionError, "--trust-env"),
        (f"{ROUTE} --expert nothing-here", StudyError, "holds no run"),
        (f"{ROUTE} --expert nothing-here --episodes-per-mode 2", OptionError, "does not choose its mode"),
        (f"{ROUTE} --expert my_experts:far", OptionError, "--trust-expert"),
        (f"{MINE}:gone", OptionError, "is not there"),
        (f"{ROUTE} --trust-expert --expert no_such_module:far", OptionError, "is not there"),
        (f"{MINE}:number", OptionError, "cannot be called"),
        (f"{MINE}:far", OptionError, "outside the action space"),
        (f"{MINE}:angry", OptionError, "raised in episode 0"),
        (f"{MINE}:badly_moded", OptionError, "`mode` of episode 0"),
        (f"{MINE}:moded --min-return 1 --episodes 2 --max-episodes 2", OptionError, "0 of 2 episodes were good enough"),
        (f"{MINE}:moded --episodes 3 --max-episodes 2", OptionError, "`--max-episodes`"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_no_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, given: str, kind: type[LatentPGError], told: str
) -> None:
    monkeypatch.chdir(here)
    before = set(here.iterdir())
    with pytest.raises(kind) as caught:
        record_command(given.split())
    assert told in str(caught.value)
    assert {path for path in set(here.iterdir()) - before if path.name != "__pycache__"} == set()


def test_a_file_that_is_there_stays(here: Path) -> None:
    out = here / "demos.npz"
    out.write_bytes(b"mine")
    with pytest.raises(OptionError, match="is there already"):
        record_command(["--env", ROUTES, "--episodes", "2", "--out", str(out)])
    assert out.read_bytes() == b"mine"
    assert record_command(["--env", ROUTES, "--episodes", "2", "--out", str(out), "--overwrite"]) == 0
    assert load_npz(out).num_episodes == 2


def test_a_run_for_other_spaces_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="trained for CartPole-v1"):
        record_command(["--env", ROUTES, "--expert", str(run), "--episodes", "1", "--out", str(tmp_path / "a.npz")])


def test_a_folder_of_several_runs_is_refused(run: Path, tmp_path: Path) -> None:
    several = (run / "config.toml").read_text(encoding="utf-8") + "\nseeds = [0, 1]\n"
    (tmp_path / "config.toml").write_text(several, encoding="utf-8")
    asked = ["--env", "CartPole-v1", "--expert", str(tmp_path), "--episodes", "1", "--out", str(tmp_path / "a.npz")]
    with pytest.raises(OptionError, match="one run for each seed"):
        record_command(asked)


def test_the_command_is_there_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latentpg", "record", "--env", ROUTES, "--out", str(tmp_path / "no" / "a.npz")])
    assert cli.main() == cli.USAGE_ERROR and "a folder that is there" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["latentpg", "list"])
    assert cli.main() == 0 and f"latentpg record --env {ROUTES}" in capsys.readouterr().out


@pytest.mark.parametrize(("policy", "span"), [("mixture", "step"), ("episode", "episode"), ("chunk", "chunk")])
def test_a_cloned_policy_is_recorded_with_the_latent_it_holds(tmp_path: Path, policy: str, span: str) -> None:
    folder, out = tmp_path / "run", tmp_path / "demos.npz"
    changes: dict[str, object] = {"policy": policy, "num_epochs": 1}
    changes |= {"num_action_steps": 2, "chunk_size": 4} if policy == "chunk" else {}
    clone(small(**changes), folder)
    envs = make_envs(ROUTES, 2)
    expert = load_expert(folder, envs, which="last", trusted=False, say=print)
    assert (expert.latent, expert.execute) == (span, 2 if policy == "chunk" else None)
    asked = ["--env", ROUTES, "--expert", str(folder), "--episodes", "3", "--out", str(out)]
    assert record_command(asked) == 0
    played = episodes_of_policy(envs, expert.policy, Wanted(3), latent=expert.latent, execute=expert.execute)
    first = next(played)  # what the command plays begins where this does, whoever plays beside it
    kept = load_npz(out)
    assert kept.num_episodes == 3 and np.array_equal(kept.obs[0].numpy(), first.obs[0])
    if policy != "mixture":
        with pytest.raises(OptionError, match="a latent that is held for"):
            record_command([*asked, "--acting", "decoder-mean", "--overwrite"])
