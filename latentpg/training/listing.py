"""What there is to choose from, by the names that commands and files use, each with a line of text."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping

import gymnasium

from latentpg.envs import ENV_IDS, register_envs
from latentpg.estimators import GUIDE_OBJECTIVES
from latentpg.estimators.registry import PROPOSALS
from latentpg.imitation import OBJECTIVES
from latentpg.studies import make_study, named_studies
from latentpg.training.algorithms import ALGORITHMS
from latentpg.training.config import TUNED, read_options
from latentpg.training.parts import SELECTORS

POLICY_TITLES: Mapping[str, str] = {
    "mixture": "A category z picks one of C components.",
    "gaussian": "A Gaussian z of a few dimensions.",
    "two-level": "A category for the mode, and a Gaussian for the style within it.",
    "plain": "No latent: a Gaussian or categories in closed form, the baseline.",
    "chunk": "One z, a Gaussian or a code, for several actions, decided on at once.",
    "episode": "One z, a Gaussian or a code, for a whole episode.",
}
"""What each policy is, by its name."""


def everything() -> dict[str, dict[str, str]]:
    """Return names and descriptions under the title of what they name.

    >>> list(everything())[:2], everything()["Algorithms"]["ppo"]
    (['Algorithms', 'Policies'], 'Clipped ratios over several epochs, GAE, a critic.')
    """
    return {
        "Algorithms": {name: algorithm.title for name, algorithm in ALGORITHMS.items()},
        "Policies": {name: POLICY_TITLES.get(name, "") for name in SELECTORS["policy"]},
        "Estimators of log π(a|s)": _described(SELECTORS["estimator"]),
        "Proposals": _described(PROPOSALS),
        "Guide objectives": _described(GUIDE_OBJECTIVES),
        "Objectives over demonstrations": _described(OBJECTIVES),
        "Studies": {name: make_study(name).title for name in named_studies()},
        "Option files that ship": shipped_files(),
        "Environments of this package, beside Gymnasium's": environments(),
    }


def shipped_files() -> dict[str, str]:
    """Return the names of the option files that ship, each with the command that takes it."""
    found = {}
    for path in sorted(TUNED.glob("*.toml")):
        options = read_options(path)
        found[path.stem] = f"latentpg train --env {options['env']} --algo {options['algo']}"
    for path in sorted((TUNED / "from").glob("*.toml")):
        options = read_options(path)
        found[f"from/{path.stem}"] = f"latentpg train --from RUN --algo {options['algo']}, of a run on {options['env']}"
    return found


def environments() -> dict[str, str]:
    """Return the ids of the environments of this package, each with the first line of its module."""
    register_envs()
    found = {}
    for env_id in ENV_IDS:
        module = str(gymnasium.spec(env_id).entry_point).partition(":")[0]
        line = (importlib.import_module(module).__doc__ or "").partition("\n")[0]
        text = line.partition(": ")[2]
        found[env_id] = text[:1].upper() + text[1:]
    return found


def _described(known: Mapping[str, Callable[..., object]]) -> dict[str, str]:
    return {name: first_sentence(maker) for name, maker in known.items()}


def first_sentence(documented: Callable[..., object]) -> str:
    """Return the beginning of a docstring as plain text.

    >>> first_sentence(first_sentence)
    'Return the beginning of a docstring as plain text.'
    """
    text = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")
    for tex, plain in _PLAIN_TEX.items():
        text = text.replace(tex, plain)
    text = " ".join(re.sub(r":\w+:`([^`]*)`", r"\1", text).split())
    return re.sub(r"(?<!\d )- ", "-", text).replace(" , ", ", ")


_PLAIN_TEX = {
    r"\mathbb ": "",
    r"\nabla": "∇",
    r"\frac1K": "1/K",
    r"\bar w": " w̄",
    r"\sum": " Σ",
    r"\log": " log ",
    r"\psi": "ψ",
    r"\partial": " ∂",
    r"\sim": "~",
    r"\mid": "|",
    r"\pi": "π",
    r"\theta": "θ",
    r"\,": " ",
    "``": "",
    "^2": "²",
}
