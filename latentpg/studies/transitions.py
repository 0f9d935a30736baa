r"""Transitions that a mixture policy records in a Gymnasium environment."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentpg.errors import OptionError, StudyError
from latentpg.estimators import Exact
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import LatentPolicy, Latents, log_joint
from latentpg.rollout import make_envs, record_transitions
from latentpg.studies.guides import train_guide
from latentpg.studies.problem import Problem
from latentpg.studies.references import EnumeratedPosterior, enumerated_facts
from latentpg.studies.seeds import stream_seed


@dataclass(frozen=True)
class MixtureTransitions:
    r"""Rows (s, a, z) that an untrained :class:`~latentpg.policies.MixturePolicy` records in a Gymnasium environment.

    In torch's own initialisation all components do nearly the same, and the posterior over them is the prior. Here
    component c of C leans towards an action of its own: its embedding pushes the hidden units along the read-out so
    that the head's parameters move by ``lean`` times :math:`-1 + 2c/(C-1)`; with two actions that is their log-odds.
    The prior's logits are multiplied by ``prior_scale``, so that it depends on the state. The facts the source reports
    say how far prior and posterior then are apart. Of the policy only the guide is trained: ``guide_steps`` full-batch
    steps of Adam on ``guide_objective`` over the recorded rows.
    """

    env_id: str = "CartPole-v1"
    num_rows: int = 256
    num_envs: int = 8
    num_components: int = 4
    hidden: int = 16
    lean: float = 4.0
    prior_scale: float = 4.0
    guide_objective: str = "recorded"
    guide_steps: int = 60
    guide_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("num_rows", "num_envs", "num_components", "hidden"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError("MixtureTransitions()", f"`{name}`", expected="an integer >= 1", got=repr(value))

    def describe(self) -> str:
        """Say what the rows are."""
        return f"{self.num_rows} rows of {self.env_id}, {self.num_components}-component mixture policy"

    def build(self, seed: int) -> Problem:
        """Act, record, check the record, train the guide."""
        envs = make_envs(self.env_id, self.num_envs)
        try:
            with seeded(stream_seed(seed, "policy")):
                policy = MixturePolicy(
                    envs.single_observation_space,
                    envs.single_action_space,
                    num_components=self.num_components,
                    hidden=(self.hidden,),
                )
                _tell_components_apart(policy, lean=self.lean, prior_scale=self.prior_scale)
            with seeded(stream_seed(seed, "act")):
                rows = record_transitions(
                    envs,
                    policy,
                    num_steps=math.ceil(self.num_rows / self.num_envs),
                    seed=stream_seed(seed, "environment"),
                ).rows(slice(0, self.num_rows))
        finally:
            envs.close()
        moved = check_record(policy, rows.obs, rows.action, rows.latents, rows.log_joint)
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
        facts = {
            "episodes that ended": int(rows.done.sum()),
            "largest change of log p(z, a | s) from acting to scoring (nats)": moved,
            "largest entropy there could be (nats)": math.log(self.num_components),
            **enumerated_facts(policy, rows.obs, rows.action),
        }
        return Problem(
            policy,
            rows.obs,
            rows.action,
            rows.latents,
            facts,
            exact=Exact(),
            redraw=EnumeratedPosterior.of(policy, rows.obs, rows.action),
            seed=seed,
        )


def check_record(policy: LatentPolicy, obs: Tensor, action: Tensor, latents: Latents, recorded: Tensor) -> float:
    """Recompute log p(z, a | s) of recorded rows and return its largest change; a real one is an error.

    It guards everything that follows: a moved normaliser, dropout or misaligned rows would make the recorded latents
    draws from some other policy's posterior.
    """
    with torch.no_grad():
        now = log_joint(policy, obs, action, {name: value.unsqueeze(0) for name, value in latents.items()})[0]
    change = float((now - recorded).abs().max())
    tolerance = 1e3 * torch.finfo(now.dtype).eps * max(1.0, float(recorded.abs().max()))
    if not change <= tolerance:
        raise StudyError(
            "recorded rows",
            "log p(z, a | s) is no longer what it was when the policy acted",
            expected=f"a change of at most {tolerance:.1e} nats",
            got=f"{change:.3g} nats in row {int((now - recorded).abs().nan_to_num(nan=math.inf).argmax())}",
            likely="a network that depends on the batch or on random masks, or rows out of order",
            fix="act and score with the same parameters and buffers",
        )
    return change


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
