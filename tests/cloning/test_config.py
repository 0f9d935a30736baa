"""Names and values to a configuration, and a configuration to a command: what was left open, and what is refused."""

import shlex
import tomllib
from pathlib import Path

import pytest

from latentpg.cloning import command_of, parse_imitate, resolve, tuned_options
from latentpg.cloning.config import TUNED
from latentpg.cloning.parts import CloningOptions
from latentpg.errors import OptionError, RecordedLatentError
from latentpg.estimators import Mixture
from latentpg.imitation import FitOptions, ReweightedWakeSleep
from tests.cloning.runs import EPISODE, small, words


@pytest.mark.parametrize(
    ("given", "objective"),
    [
        ({}, "exact"),
        ({"policy": "plain"}, "exact"),
        ({"policy": "two-level"}, "elbo"),
        ({"policy": "chunk"}, "elbo"),
        ({"policy": "episode", "latent_kind": "codes"}, "exact"),
    ],
)
def test_the_objective_follows_from_the_latent(given: dict[str, str], objective: str) -> None:
    assert resolve({"data": "shown.npz", **given}).selection.objective == objective


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": "gaussian", "objective": "exact"}, "objective exact sums over the values of a latent"),
        ({"policy": "two-level", "objective": "em"}, "objective em sums over the values of a latent"),
        ({"policy": "episode", "objective": "em"}, "fix:      --latent-kind codes, or --objective elbo"),
        ({"policy": "plain", "objective": "elbo"}, "objective elbo infers a latent, and policy plain has none"),
        ({"policy": "plain", "objective": "em"}, "objective em infers a latent"),
        ({"policy": "mixture", "objective": "elbow"}, "fix:      did you mean elbo?"),
        ({"policy": "mixtur"}, "fix:      did you mean mixture?"),
        ({"objective": "exact", "proposal": "guide"}, "objective exact has no proposal"),
        ({"policy": "mixture", "latent_size": 3}, "it belongs to --policy"),
        ({"free_nats": 1.0}, "it belongs to --objective elbo"),
        ({"split": [0.5, "much"]}, "expected: a list, each a number"),
        ({"rollouts": -1}, "`rollouts`"),
        ({"likelihood_particles": []}, "`likelihood_particles`"),
        ({"policy": 3}, "`policy`"),
        ({"min_log_std": float("inf")}, "`min_log_std`"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve({"data": "shown.npz", **given})
    assert message in str(caught.value)


def test_estimators_that_need_a_recorded_latent_say_so() -> None:
    with pytest.raises(RecordedLatentError, match="demonstrations carry no recorded latent"):
        resolve({"data": "shown.npz", "objective": "conditional-is"})


def test_no_data_is_refused() -> None:
    with pytest.raises(OptionError, match="no demonstrations"):
        parse_imitate([])


def test_every_option_of_a_fit_is_one_of_the_command() -> None:
    flat = small(policy="gaussian").flat()
    assert {name for name in vars(FitOptions())} <= set(flat) and set(vars(CloningOptions())) <= set(flat)


def test_a_proposal_is_a_part_of_its_own() -> None:
    found = resolve(
        {"data": "shown.npz", "objective": "reweighted-wake-sleep", "num_particles": 3, "proposal": "mixture"}
    )
    assert found.objective == ReweightedWakeSleep(3, proposal=Mixture())
    assert resolve(found.flat()) == found


@pytest.mark.parametrize("path", sorted(TUNED.glob("*.toml")), ids=lambda path: path.stem)
def test_options_that_ship_are_whole_and_suit_their_parts(path: Path) -> None:
    env = tomllib.loads(path.read_text(encoding="utf-8"))["env"]
    asked = parse_imitate(["--data", f"scripted:{env}"]).config
    shipped = tuned_options(env)
    assert shipped and {name: asked.flat()[name] for name in shipped} == shipped


def test_who_asks_for_another_policy_gets_nothing_that_shipped() -> None:
    data = ["--data", "scripted:latentpg/Avoiding-v0"]
    other = parse_imitate([*data, "--policy", "mixture"]).config
    assert other == resolve({"data": data[1], "policy": "mixture"})
    assert parse_imitate([*data, "--objective", "iwae"]).config.fit == FitOptions()
    longer = parse_imitate([*data, "--num-epochs", "7"]).config
    assert longer.fit.num_epochs == 7 and longer.fit.match_prior_every == 10


def test_flags_lie_over_a_file_and_that_over_what_ships(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('num_epochs = 5\nbatch_size = 3\npolicy = "episode"\n', encoding="utf-8")
    asked = ["--data", "scripted:latentpg/Avoiding-v0", "--config", str(file), "--batch-size", "9"]
    found = parse_imitate(asked).config
    assert (found.fit.num_epochs, found.fit.batch_size, found.fit.match_prior_every) == (5, 9, 10)
    file.write_text("num_epoch = 5\n", encoding="utf-8")
    with pytest.raises(OptionError, match="unknown option `num_epoch`"):
        parse_imitate(asked)


@pytest.mark.parametrize(
    "given",
    [
        words(),
        words(**EPISODE),
        ["--data", "scripted:latentpg/Avoiding-v0"],
        ["--data", "scripted:latentpg/Avoiding-v0", "--latent-kind", "codes"],
        ["--data", "scripted:latentpg/Avoiding-v0", "--match-prior-every", "None", "--seed", "3"],
        ["--data", "scripted:latentpg/Avoiding-v0", "--policy", "chunk", "--objective", "iwae", "--hidden", "4", "5"],
        ["--data", "scripted:latentpg/Avoiding-v0", "--objective", "score-climbing", "--proposal", "prior"],
        ["--data", "shown.npz", "--env", "Pendulum-v1", "--policy", "two-level", "--no-orthogonal-init"],
    ],
)
def test_a_command_makes_the_same_configuration_again(given: list[str]) -> None:
    config = parse_imitate(given).config
    spelled = shlex.split(command_of(config))
    assert spelled[:2] == ["latentpg", "imitate"]
    assert parse_imitate(spelled[2:]).config == config


def test_an_unknown_flag_is_answered_with_a_suggestion() -> None:
    with pytest.raises(OptionError, match="did you mean num_epochs"):
        parse_imitate([*words(), "--num-epoch", "3"])
    with pytest.raises(OptionError, match="it belongs to --objective elbo"):
        parse_imitate([*words(), "--beta", "3"])


def test_an_environment_that_would_import_a_module_needs_the_users_word() -> None:
    with pytest.raises(OptionError, match="would import and so execute the module mine"):
        parse_imitate(words(data="shown.npz", env="mine:Env-v0"))
