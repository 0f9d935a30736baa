"""Configurations: what they are made of, how layers go on top of each other, and what is refused."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentpg.errors import OptionError
from latentpg.estimators import ConditionalIS
from latentpg.estimators.guides import ConditionalWake
from latentpg.estimators.proposals import Guide, Prior
from latentpg.learners import PPOOptions
from latentpg.runs import write_toml
from latentpg.training import resolve
from latentpg.training.config import TUNED, check_trust, known_values, layered, read_options, tuned_options
from latentpg.training.parts import COMMON, SELECTORS, Selection, default_of, options_of
from latentpg.training.policies import MixturePart
from latentpg.training.spans import SPANS, spans_of

CARTPOLE = {"env": "CartPole-v1"}


def test_no_two_parts_of_a_run_have_an_option_of_one_name() -> None:
    """Options are flags without their part's name, so this is what lets any parts be chosen together."""
    groups: dict[str, list[tuple[str, Callable[..., Any]]]] = {part: [(part, maker)] for part, maker in COMMON.items()}
    groups |= {selector: [(selector, maker) for maker in known.values()] for selector, known in SELECTORS.items()}
    names = {
        group: {name for part, maker in members for name in options_of(part, maker)}
        for group, members in groups.items()
    }
    names["the command"] = {
        *Selection.__dataclass_fields__,
        "config",
        "tuned",
        "seeds",
        "num_workers",
        "out",
        "trust_env",
    }
    for (one, mine), (other, theirs) in itertools.combinations(names.items(), 2):
        assert not mine & theirs, f"{one} and {other} both have {sorted(mine & theirs)}"


def test_an_option_that_can_be_none_is_none_by_default() -> None:
    """A file cannot say none, so a configuration would come back from one with the default in its place."""
    for selector, known in SELECTORS.items():
        for name, maker in known.items():
            for option, field in options_of(selector, maker).items():
                if "None" in str(field.type):
                    assert default_of(field) is None, f"{selector} {name}: {option}"


def test_defaults_are_those_of_the_parts() -> None:
    config = resolve(CARTPOLE)
    assert config.algorithm == PPOOptions()
    assert config.estimator == ConditionalIS(8, Prior())
    assert config.policy == MixturePart(4) and config.objective is None


@pytest.mark.parametrize("algo", list(SELECTORS["algo"]))
@pytest.mark.parametrize("policy", list(SELECTORS["policy"]))
def test_every_choice_comes_back_from_a_file(algo: str, policy: str, tmp_path: Path) -> None:
    values = {**CARTPOLE, "algo": algo, "policy": policy, "seed": 3}
    if SPANS.get(policy, "step") not in spans_of(algo):
        with pytest.raises(OptionError, match="no rows for"):
            resolve(values)
        return
    config = resolve(values)
    write_toml(tmp_path / "config.toml", known_values(config))
    assert resolve(read_options(tmp_path / "config.toml")) == config


def test_what_is_left_open_follows_from_the_rest() -> None:
    assert resolve({**CARTPOLE, "policy": "plain"}).selection.estimator == "closed-form"
    taught = resolve({**CARTPOLE, "proposal": "guide"})
    assert taught.estimator == ConditionalIS(8, Guide()) and taught.objective == ConditionalWake()
    assert resolve({**CARTPOLE, "estimator": "posterior-is"}).selection.guide_objective == "recorded"
    assert resolve({**CARTPOLE, "estimator": "exact"}).selection.proposal == "none"


def test_a_guide_objective_has_options_of_its_own() -> None:
    config = resolve({**CARTPOLE, "proposal": "guide", "guide_objective": "sleep", "guide_num_dreams": 3})
    assert repr(config.objective) == "Sleep(num_dreams=3)"


def test_the_options_that_ship_resolve_and_name_themselves() -> None:
    files = sorted(TUNED.glob("*.toml"))
    assert files
    for file in files:
        config = resolve(read_options(file), where=file.name)
        assert file.name == f"{config.selection.env.replace('/', '_')}-{config.selection.algo}.toml"


def test_the_options_that_ship_for_cartpole() -> None:
    config = resolve(tuned_options("CartPole-v1", "ppo"))
    assert config.run.num_envs == 8 and config.run.total_timesteps == 99_840
    assert config.agent.batch_size == 256 and config.agent.learning_rate == 1e-3 and config.agent.anneal
    assert (config.algorithm.num_steps, config.algorithm.num_epochs) == (32, 20)
    assert (config.algorithm.gamma, config.algorithm.gae_lambda) == (0.98, 0.8)
    assert config.algorithm.clip_range == 0.2 and config.algorithm.anneal_clip
    assert tuned_options("NoSuchEnv-v0", "ppo") == {}


def test_a_later_layer_wins_and_parts_that_it_replaces_take_their_options_along() -> None:
    file = {**CARTPOLE, "num_components": 3, "num_particles": 4, "num_steps": 16}
    kept = layered(file, {"policy": "gaussian"})
    assert "num_components" not in kept and kept["num_particles"] == 4 and kept["num_steps"] == 16
    plain = layered({**file, "estimator": "conditional-is"}, {"policy": "plain"})
    assert plain == {**CARTPOLE, "num_steps": 16, "policy": "plain"}
    guided = {**file, "estimator": "conditional-is", "proposal": "guide", "guide_objective": "conditional-wake"}
    assert resolve(layered(guided, {"estimator": "exact"})).objective is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no environment"),
        ({**CARTPOLE, "algo": "pppo"}, "did you mean ppo?"),
        ({**CARTPOLE, "policy": "mixtures"}, "did you mean mixture?"),
        ({**CARTPOLE, "estimator": "conditonal-is"}, "did you mean conditional-is?"),
        ({**CARTPOLE, "proposal": "gide"}, "did you mean guide?"),
        ({**CARTPOLE, "guide_objective": "weak"}, "did you mean wake?"),
        ({**CARTPOLE, "num_stepz": 3}, "did you mean num_steps"),
        ({**CARTPOLE, "group_size": 3}, "it belongs to --algo grpo"),
        ({**CARTPOLE, "policy": "plain", "num_components": 3}, "it belongs to --policy mixture"),
        ({**CARTPOLE, "num_steps": "many"}, "an integer"),
        ({**CARTPOLE, "num_steps": True}, "an integer"),
        ({**CARTPOLE, "total_timesteps": 0}, "an integer >= 1"),
        ({**CARTPOLE, "eval_episodes": 3}, "an integer >= 4"),
        ({**CARTPOLE, "seed": -1}, "an integer >= 0"),
        ({**CARTPOLE, "hidden": []}, "widths >= 1"),
        ({**CARTPOLE, "activation": "tan"}, "did you mean tanh?"),
        ({**CARTPOLE, "algo": 3}, "a name"),
        ({**CARTPOLE, "algo": "grpo", "group_size": 1}, "nothing to be compared with"),
        ({**CARTPOLE, "estimator": "exact", "proposal": "guide"}, "has no proposal"),
        ({**CARTPOLE, "policy": "plain", "estimator": "elbo"}, "no latent to estimate over"),
        ({**CARTPOLE, "estimator": "closed-form"}, "has no closed form"),
        ({**CARTPOLE, "entropy_coefficient": 0.1}, "which nothing teaches"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("env = ", "cannot be read"), ("format_version = 2\n", "another version of the format")]
)
def test_a_file_that_cannot_be_read_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        read_options(path)
    with pytest.raises(OptionError, match="cannot be read"):
        read_options(tmp_path / "none.toml")


def test_an_environment_of_a_module_needs_trust() -> None:
    check_trust("CartPole-v1", trusted=False)
    check_trust("module:Env-v0", trusted=True)
    with pytest.raises(OptionError, match="execute the module module"):
        check_trust("module:Env-v0", trusted=False)
