r"""Transitions that a latent policy records in a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import nn

from latentpg.errors import LatentPGError, OptionError, StudyError, did_you_mean
from latentpg.estimators import Exact
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import LatentPolicy
from latentpg.rollout import Transitions, check_record, make_envs, record_transitions
from latentpg.studies.guides import train_guide
from latentpg.studies.problem import Problem
from latentpg.studies.references import enumerated_facts, find_reference
from latentpg.studies.user_policy import file_of, load_policy

READY_MADE = ("mixture", "gaussian", "two-level")
"""Policies that need no file."""


@dataclass(frozen=True)
class PolicyTransitions:
    r"""Rows (s, a, z) that an untrained latent policy records in a Gymnasium environment.

    ``policy`` is ``mixture``, ``gaussian``, ``two-level``, or the user's own as ``path/to/file.py:NAME``. References
    are found as :func:`~latentpg.studies.references.find_reference` does: by enumeration, by quadrature, or not at all.

    In torch's own initialisation all components of a mixture do nearly the same, and the posterior over them is the
    prior. Here component c of C leans towards an action of its own: its embedding pushes the hidden units along the
    read-out so that the head's parameters move by ``lean`` times :math:`-1 + 2c/(C-1)`; with two actions that is their
    log-odds. The prior's logits are multiplied by ``prior_scale``, so that it depends on the state. The facts the
    source reports say how far prior and posterior then are apart. Of the policy only the guide is trained:
    ``guide_steps`` full-batch steps of Adam on ``guide_objective`` over the recorded rows. A Gaussian latent, and the
    style of two levels, have ``latent_size`` dimensions.
    """

    env_id: str = "CartPole-v1"
    policy: str = "mixture"
    num_rows: int = 256
    num_envs: int = 8
    num_components: int = 4
    latent_size: int = 2
    hidden: int = 16
    lean: float = 4.0
    prior_scale: float = 4.0
    guide_objective: str = "recorded"
    guide_steps: int = 60
    guide_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        """Check the counts and the policy's name."""
        for name in ("num_rows", "num_envs", "num_components", "latent_size", "hidden"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError("PolicyTransitions()", f"`{name}`", expected="an integer >= 1", got=repr(value))
        if self.policy not in READY_MADE and ":" not in self.policy:
            raise OptionError(
                "PolicyTransitions()",
                "unknown policy",
                expected=f"one of {', '.join(READY_MADE)}, or path/to/file.py:NAME",
                got=repr(self.policy),
                fix=did_you_mean(self.policy, READY_MADE),
            )

    def describe(self) -> str:
        """Say what the rows are."""
        return f"{self.num_rows} rows of {self.env_id}, {self._policy_in_words()}"

    def build(self, seed: int) -> Problem:
        """Act, record, check the record, train the guide, look for a reference."""
        envs = make_envs(self.env_id, self.num_envs)
        try:
            with seeded(stream_seed(seed, "policy")):
                policy = self._make(envs)
            with seeded(stream_seed(seed, "act")):
                rows = self._record(envs, policy, seed)
            space = envs.single_action_space
        finally:
            envs.close()
        moved = check_record(policy, rows.obs, rows.action, rows.latents, rows.log_joint)
        if policy.guide_parameters():
            with seeded(stream_seed(seed, "guide")):
                train_guide(
                    policy,
                    rows.obs,
                    rows.action,
                    rows.latents,
                    objective=self.guide_objective,
                    steps=self.guide_steps,
                    learning_rate=self.guide_learning_rate,
                )
        with seeded(stream_seed(seed, "reference")):
            found = find_reference(policy, rows.obs, rows.action)
        known: Mapping[str, float] = {}
        if isinstance(found.exact, Exact):
            size = {"largest entropy there could be (nats)": math.log(self.num_components)}
            known = {**(size if self.policy == "mixture" else {}), **enumerated_facts(policy, rows.obs, rows.action)}
        facts: Mapping[str, float | int | str] = {
            "episodes that ended": int(rows.done.sum()),
            "largest change of log p(z, a | s) from acting to scoring (nats)": moved,
            "reference": found.reason,
            **known,
        }
        return Problem(
            policy,
            rows.obs,
            rows.action,
            rows.latents,
            facts,
            exact=found.exact,
            redraw=found.redraw,
            seed=seed,
            every_action=torch.arange(int(space.n)) if isinstance(space, spaces.Discrete) else None,
        )

    def _make(self, envs: VectorEnv) -> LatentPolicy:
        both, hidden = (envs.single_observation_space, envs.single_action_space), (self.hidden,)
        match self.policy:
            case "mixture":
                policy = MixturePolicy(*both, num_components=self.num_components, hidden=hidden)
                _tell_components_apart(policy, lean=self.lean, prior_scale=self.prior_scale)
                return policy
            case "gaussian":
                return GaussianPolicy(*both, latent_size=self.latent_size, hidden=hidden)
            case "two-level":
                return TwoLevelPolicy(*both, num_modes=self.num_components, style_size=self.latent_size, hidden=hidden)
            case own:
                return load_policy(own)

    def _record(self, envs: VectorEnv, policy: LatentPolicy, seed: int) -> Transitions:
        steps = math.ceil(self.num_rows / self.num_envs)
        try:
            rows = record_transitions(envs, policy, num_steps=steps, seed=stream_seed(seed, "environment"))
        except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
            if self.policy in READY_MADE or isinstance(error, LatentPGError):
                raise
            raise StudyError(
                "the user's policy",
                f"it does not act in {self.env_id}",
                expected=f"actions for {envs.single_action_space} from flat observations [B, S]",
                got=f"{type(error).__name__}: {error}",
            ) from error
        return rows.rows(slice(0, self.num_rows))

    def _policy_in_words(self) -> str:
        match self.policy:
            case "mixture":
                return f"{self.num_components}-component mixture policy"
            case "gaussian":
                return f"Gaussian latent of {self.latent_size} dimensions"
            case "two-level":
                return f"two-level policy, {self.num_components} modes and a style of {self.latent_size} dimensions"
            case own:
                return f"policy {file_of(own).rpartition('/')[2]}:{own.rpartition(':')[2]}"


def _tell_components_apart(policy: MixturePolicy, *, lean: float, prior_scale: float) -> None:
    network = policy.decoder.network
    embedding, readout = network.latents[0], network.rest.layers[-1]
    assert isinstance(embedding, nn.Linear) and isinstance(readout, nn.Linear)
    with torch.no_grad():
        sensitivity = torch.linspace(-1, 1, readout.out_features) @ readout.weight
        place = torch.linspace(-1, 1, embedding.in_features)
        embedding.weight.copy_(sensitivity.sign().unsqueeze(1) * place)
        readout.weight.mul_(lean / (math.tanh(1.0) * sensitivity.abs().sum()))
        for parameter in policy.prior.layers[-1].parameters():
            parameter.mul_(prior_scale)
