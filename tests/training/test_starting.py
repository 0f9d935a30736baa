"""Spans of several steps by the command, and runs that begin with an earlier one's policy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from latentpg.errors import OptionError, StudyError
from latentpg.learners.agent import under
from latentpg.runs import newest_checkpoint
from latentpg.training import begin_run, evaluate, prepared, read_metrics, resolve, train
from latentpg.training.cloned import read_cloned
from latentpg.training.commands import evaluate_command, resume_command, train_command
from latentpg.training.config import TUNED, fine_tuning_options, known_values, read_options, tuned_options
from latentpg.training.listing import shipped_files
from latentpg.training.options import command_of, parse_train
from latentpg.training.spans import spans_of
from latentpg.training.starting import digest, read_source
from tests.cloning.runs import EPISODE, run, small
from tests.training.runs import after, files_of, no_figure, spelled

ROUTES: dict[str, Any] = {
    "env": "latentpg/Routes-v0", "vectorization_mode": "native", "num_envs": 3, "eval_episodes": 4, "num_epochs": 1,
    "num_particles": 2, "total_timesteps": 400, "checkpoint_every": 100, "eval_every": 200, "gap_every": 0,
}  # fmt: skip
"""Short runs; an episode of a policy that has learnt nothing takes 60 steps."""

OF_SPAN: dict[str, dict[str, Any]] = {
    "chunk": {"policy": "chunk", "chunk_size": 8, "num_action_steps": 6, "hidden": [6]},
    "episode": {"policy": "episode", "latent_size": 2, "hidden": [6]},
}
OF_ALGO: dict[str, dict[str, Any]] = {
    "ppo": {"algo": "ppo", "num_episodes": 3, "normalize_reward": True, "kl_coefficient": 0.1},
    "grpo": {"algo": "grpo", "num_groups": 1, "group_size": 3, "kl_coefficient": 0.1},
}


@pytest.fixture(autouse=True)
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)


def options(span: str, algo: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 (options)
    return {**ROUTES, **OF_SPAN[span], **OF_ALGO[algo], **changes}


def last(folder: Path) -> dict[str, torch.Tensor]:
    return dict(newest_checkpoint(folder / "checkpoints").state)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a little, with a normaliser that moves."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    config = resolve(options("episode", "grpo", normalize_observations=True, kl_coefficient=0.0))
    with pytest.MonkeyPatch.context() as patched, prepared(config) as built:
        patched.setattr("latentpg.training.loop.draw_curve", no_figure)
        train(config, built, begin_run(config, out=folder))
    return folder


def from_it(earlier: Path, *more: str, algo: str = "ppo") -> list[str]:
    names = ("vectorization_mode", "num_envs", "eval_episodes", "total_timesteps", "checkpoint_every", "eval_every")
    given = {name: ROUTES[name] for name in (*names, "num_epochs", "num_particles", "gap_every")}
    return [*spelled({**given, **OF_ALGO[algo]}), "--from", str(earlier), *more]


# ---------------------------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize("span", list(OF_SPAN))
@pytest.mark.parametrize("algo", list(OF_ALGO))
def test_spans_go_on_bit_for_bit(algo: str, span: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_command([*spelled(options(span, algo)), "--out", str(whole)]) == 0
    config = resolve(read_options(whole / "config.toml"))
    assert config.algorithm.latent == span
    with prepared(config) as built:
        assert train(config, built, begin_run(config, out=parts), stop=after(2)).updates == 2
    assert resume_command([str(parts)]) == 0
    assert same(last(whole), last(parts))
    clock = ("time/fps", "time/seconds")
    told = [[{n: v for n, v in row.items() if n not in clock} for row in read_metrics(each)] for each in (whole, parts)]
    assert told[0] == told[1]
    assert json.loads((whole / "result.json").read_text())["exact_resume"] is True
    assert evaluate_command([str(whole), "--episodes", "4"]) == 0
    (found,) = (whole / "evaluations").iterdir()
    assert 0 <= json.loads(found.read_text())["eval/success_low"] <= 1


def test_what_the_algorithms_can_learn_from() -> None:
    found = {algo: spans_of(algo) for algo in ("ppo", "grpo", "reinforce", "a2c", "online-actor-critic")}
    assert found == {
        "ppo": ("step", "chunk", "episode"),
        "grpo": ("step", "chunk", "episode"),
        "reinforce": ("step", "episode"),
        "a2c": ("step",),
        "online-actor-critic": ("step",),
    }


def test_the_span_follows_from_the_policy() -> None:
    for policy in ("chunk", "episode"):
        for algo in ("ppo", "grpo"):
            assert resolve({"env": "Pendulum-v1", "policy": policy, "algo": algo}).algorithm.latent == policy
    held = resolve({"env": "Pendulum-v1", "policy": "episode", "algo": "reinforce"}).algorithm
    assert (held.latent, held.credit) == ("episode", "total")
    assert resolve({"env": "Pendulum-v1"}).algorithm.latent == "step"
    assert resolve({"env": "Pendulum-v1", "policy": "episode"}).algorithm.num_episodes == 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "chunk", "algo": "a2c"}, r"several steps, which a2c has no rows for[\s\S]*ppo or grpo"),
        ({"policy": "chunk", "algo": "reinforce"}, r"reinforce has no rows for"),
        ({"policy": "episode", "algo": "online-actor-critic"}, r"no rows for[\s\S]*reinforce or ppo or grpo"),
        ({"policy": "chunk", "algo": "grpo", "latent": "episode"}, r"its latent once a chunk[\s\S]*leave it out"),
        ({"policy": "episode", "algo": "grpo", "latent": "step"}, r"its latent once an episode"),
        ({"policy": "mixture", "algo": "grpo", "latent": "chunk"}, r"once a step, or an episode[\s\S]*--policy chunk"),
    ],
    ids=str,
)
def test_other_spans_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve({"env": "Pendulum-v1", **values})


def test_chunks_are_evaluated_as_they_act() -> None:
    config = resolve(options("chunk", "grpo", eval_acting="decoder-mean"))
    with pytest.raises(OptionError, match=r"held for a chunk"), prepared(config):
        pass
    with prepared(resolve(options("chunk", "grpo"))) as built:
        for latent, words in (("chunk", "held for a chunk"), ("episode", "held for an episode")):
            with pytest.raises(OptionError, match=words):
                evaluate(built.envs, built.policy, num_episodes=4, seed=0, acting="decoder-mean", latent=latent)


# ------------------------------------------------------------------------------------------------- beginning with a run


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_run_begins_with_the_policy_of_another(algo: str, earlier: Path, tmp_path: Path) -> None:
    """Its tensors, guide and statistics, which stay; and it goes on where the other folder is gone."""
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(earlier, source)
    assert train_command([*from_it(source, algo=algo), "--out", str(folder)]) == 0
    theirs = read_source(source).tensors
    written = read_options(folder / "config.toml")
    assert written["from"] == str(source) and written["from_checkpoint"] == "best"
    assert written["from_sha256"] == digest(theirs) and written["hidden"] == [6] and written["latent_size"] == 2
    config = resolve(written)
    assert resolve(known_values(config)) == config
    with prepared(config, begins=True) as built:
        mine = built.policy.state_dict()  # type: ignore[attr-defined]
        assert same(mine, dict(theirs))
        train(config, built, begin_run(config, out=tmp_path / "parts"), stop=after(1))
    statistics = {name: value for name, value in theirs.items() if "encoder" in name}
    assert len(statistics) == 3 and int(statistics["trunk.encoder.count"]) > 0
    ended = under("agent.policy", last(folder))
    assert all(torch.equal(ended[name], value) for name, value in statistics.items())
    if algo == "ppo":  # no episode of a group was better than the others
        assert any(not torch.equal(ended[name], value) for name, value in theirs.items())
    assert same(under("reference", last(folder)), dict(theirs))
    shutil.rmtree(source)
    assert resume_command([str(tmp_path / "parts")]) == 0
    assert same(last(folder), last(tmp_path / "parts"))


def test_the_command_that_is_told_makes_the_same_run(earlier: Path) -> None:
    config = parse_train(from_it(earlier)).config
    assert config.source is not None and config.run.normalize_observations
    words = command_of(config).split()
    assert "--from" in words and "--hidden" not in words and "--latent-size" not in words
    assert parse_train(words[2:]).config == config


@pytest.mark.parametrize("policy", ["episode", "mixture"])
def test_a_run_begins_with_a_cloned_policy(policy: str, tmp_path: Path) -> None:
    """The best or the last parameters, and the statistics of the demonstrations."""
    more = EPISODE if policy == "episode" else {"policy": policy}
    source, folder = tmp_path / "cloned", tmp_path / "run"
    run(small(**more, env="latentpg/Routes-v0", rollouts=0), source)
    assert train_command([*from_it(source, algo="grpo"), "--out", str(folder)]) == 0
    cloned, config = read_cloned(source), resolve(read_options(folder / "config.toml"))
    assert config.selection.policy == policy and config.run.hidden == (8,) and config.run.normalize_observations
    assert config.policy == cloned.part and config.source is not None
    assert same(under("reference", last(folder)), dict(cloned.tensors))
    other = read_source(source, checkpoint="last")
    assert same(dict(other.tensors), dict(read_cloned(source, which="last").tensors))


def test_the_options_for_fine_tuning_ship_apart(earlier: Path) -> None:
    """Those for learning from scratch would name another policy; these name none."""
    files = sorted((TUNED / "from").glob("*.toml"))
    assert files
    for file in files:
        values = read_options(file)
        assert fine_tuning_options(values["env"], values["algo"]) == values and "policy" not in values
        assert f"from/{file.stem}" in shipped_files()
        config = resolve({**values, "policy": "episode"})
        assert resolve(known_values(config)) == config
    assert fine_tuning_options("CartPole-v1", "ppo") == {} != tuned_options("CartPole-v1", "ppo")
    words = from_it(earlier, "--env", "latentpg/Avoiding-v0", algo="grpo")[1:]  # without --no-tuned
    assert parse_train(words).config.algorithm.advantage == "rloo"


def test_the_last_checkpoint_can_be_taken(earlier: Path) -> None:
    taken = parse_train(from_it(earlier, "--from-checkpoint", "last")).config.source
    assert taken is not None and taken.checkpoint == "last"
    assert taken.sha256 == digest(under("agent.policy", last(earlier)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "mixture"], r"policy = mixture, and there episode"),
        (["--hidden", "7"], r"hidden = \[7\], and there \[6\]"),
        (["--latent-size", "3"], r"latent_size = 3, and there 2"),
        (["--no-normalize-observations"], r"normalize_observations = False, and there True"),
        (["--env", "Pendulum-v1", "--vectorization-mode", "sync"], r"for another environment[\s\S]*another size"),
    ],
)
def test_what_comes_from_the_other_run_cannot_be_chosen(
    more: list[str], message: str, earlier: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        train_command([*from_it(earlier), *more, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_gone_on_is_found_out(earlier: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(earlier, source)
    config = parse_train(from_it(source)).config
    shutil.copytree(earlier, source, dirs_exist_ok=True)
    with prepared(config, begins=True):
        pass  # the same tensors
    wrong = resolve({**config.flat(), "from_sha256": "0" * 64})
    before = files_of(source)
    with (
        pytest.raises(OptionError, match=r"is not the one that this run is to begin with"),
        prepared(wrong, begins=True),
    ):
        pass
    assert files_of(source) == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"--from: [\s\S]*holds no run[\s\S]*no such folder"):
        train_command(["--from", str(tmp_path / "nothing")])
    with pytest.raises(OptionError, match=r"of no run"):
        train_command(["--env", "CartPole-v1", "--from-checkpoint", "best"])
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "config.toml").write_text('env = "CartPole-v1"\n', encoding="utf-8")
    (tmp_path / "seeds" / "seed-0").mkdir()
    with pytest.raises(StudyError, match=r"one run for each seed[\s\S]*seed-N"):
        train_command(["--from", str(tmp_path / "seeds")])
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "config.toml").write_text("gamma = 0.5\n", encoding="utf-8")
    with pytest.raises(StudyError, match=r"holds no training run"):
        train_command(["--from", str(tmp_path / "study")])


def test_help_needs_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_train(["--from", "RUN", "--algo", "grpo", "--help"])
    told = capsys.readouterr().out
    assert not ended.value.code and "--from" in told and "--hold-prior" in told and "--group-size" in told


def test_a_source_that_is_half_told_is_refused() -> None:
    with pytest.raises(OptionError, match=r"`from`[\s\S]*leave all three out"):
        resolve({"env": "CartPole-v1", "from": "runs/a"})


def test_modes_are_counted_where_they_are_known(earlier: Path, tmp_path: Path) -> None:
    assert "eval/success" in read_metrics(earlier)[0]
    config = resolve({"env": "CartPole-v1", "eval_episodes": 4, "num_steps": 8, "total_timesteps": 64, "hidden": [4]})
    with prepared(config) as built:
        train(config, built, begin_run(config, out=tmp_path / "run"))
    assert not any(name.startswith("eval/success") for name in read_metrics(tmp_path / "run")[0])
