"""The command line of a run: selectors first, and only the options of what they chose."""

import shlex
from pathlib import Path

import pytest

from latentpg.errors import OptionError
from latentpg.training import resolve, tuned_options
from latentpg.training.options import changed_options, command_of, parse_train, seeds_of


def test_flags_lie_above_a_file_and_a_file_above_what_ships(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('env = "CartPole-v1"\nnum_steps = 16\nnum_epochs = 5\n', encoding="utf-8")
    config = parse_train(["--config", str(file), "--num-epochs=3", "--hidden", "8", "8", "--no-anneal"]).config
    assert (config.algorithm.num_steps, config.algorithm.num_epochs, config.algorithm.gamma) == (16, 3, 0.98)
    assert config.run.hidden == (8, 8) and not config.agent.anneal


def test_what_ships_can_be_left_out() -> None:
    config = parse_train(["--env", "CartPole-v1", "--no-tuned"]).config
    assert config == resolve({"env": "CartPole-v1"})


def test_help_shows_the_options_of_the_chosen_parts_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as leave:
        parse_train(["--env", "CartPole-v1", "--algo", "grpo", "--policy", "gaussian", "--help"])
    assert leave.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("--group-size", "--latent-size", "--num-particles", "--total-timesteps"))
    assert not any(word in out for word in ("--gae-lambda", "--num-components", "--num-episodes"))


def test_help_alone_shows_a_run_with_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse_train(["--help"])
    assert leave.value.code == 0
    assert "--gae-lambda" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--env CartPole-v1"),
        (["--env", "CartPole-v1", "--algo", "grp"], "did you mean grpo?"),
        (["--env", "CartPole-v1", "--num-step", "3"], "did you mean num_steps"),
        (["--env", "CartPole-v1", "--group-size", "3"], "it belongs to --algo grpo"),
        (["--env", "mymodule:Env-v0"], "--trust-env"),
        (["--env", "CartPole-v1", "--seeds", "5:5"], "not a list of seeds"),
        (["--env", "CartPole-v1", "--config", "nowhere.toml"], "cannot be read"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_train(words)
    assert message in str(caught.value)


def test_a_file_is_held_to_the_parts_it_chooses_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('env = "CartPole-v1"\nlatent_size = 3\n', encoding="utf-8")
    with pytest.raises(OptionError, match="it belongs to --policy gaussian"):
        parse_train(["--config", str(file)])
    with pytest.raises(OptionError, match="it belongs to --policy gaussian"):
        parse_train(["--config", str(file), "--policy", "gaussian"])


@pytest.mark.parametrize("text", ["", "a", "3:1", "1,1", "-1:2", "0:2:3"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="not a list of seeds"):
        seeds_of(text)


@pytest.mark.parametrize(
    "words",
    [
        ["--env", "CartPole-v1"],
        ["--env", "CartPole-v1", "--policy", "plain", "--seed", "4"],
        ["--env", "Pendulum-v1", "--algo", "grpo", "--estimator", "posterior-is", "--num-particles", "3"],
        ["--env", "CartPole-v1", "--proposal", "mixture", "--prior-weight", "0.25", "--hidden", "8", "--no-anneal"],
    ],
)
def test_the_command_that_is_kept_makes_the_same_run(words: list[str]) -> None:
    asked = parse_train(words)
    command = shlex.split(command_of(asked.config))
    assert command[:2] == ["latentpg", "train"]
    assert parse_train(command[2:]).config == asked.config
    assert parse_train(shlex.split(command_of(asked.config, (0, 1, 2)))[2:]).seeds == (0, 1, 2)


def test_options_that_would_change_a_run_are_found() -> None:
    config = resolve(tuned_options("CartPole-v1", "ppo"))
    assert changed_options(["--num-steps", "32", "--env", "CartPole-v1"], config) == []
    assert changed_options(["--num-steps", "64"], config) == ["num_steps = 64, and not 32"]
    assert changed_options(["--algo", "grpo"], config) == ["algo = grpo, and not ppo"]
    with pytest.raises(OptionError, match="did you mean num_steps"):
        changed_options(["--num-step", "3"], config)
