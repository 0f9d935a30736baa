"""The learner behind :func:`~latentpg.imitation.fit`: an epoch at a time, and a state that can be kept.

Theta and phi move by one set of gradients, psi by another, the densities of each row's own (if there are any) by a
third; all gradients of a minibatch are taken before anything moves. An epoch draws from a stream named by its number,
and what is held out is always measured on the same draws, so that a fit that was interrupted goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import PosteriorIS
from latentpg.imitation.bounds import ImportanceBound, VariationalBound
from latentpg.imitation.divergences import guide_terms
from latentpg.imitation.em import ClosedFormMaximizer, ExpectationMaximization, em_step
from latentpg.imitation.matching import climbed_parameters, match_prior
from latentpg.imitation.objectives import Losses, Objective, ScoreClimbing
from latentpg.imitation.options import FitOptions
from latentpg.imitation.per_datum import PerDatum
from latentpg.imitation.rows import FitRows, bounded, with_noise
from latentpg.imitation.watching import mean_kl, mean_log_prob, measure_for
from latentpg.learners.agent import prefixed, under
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import Descent, check_finite, named_among
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import LatentPolicy, score_guide


class Cloner:
    """A policy, the rows it is fitted to, and everything that the next epoch hangs on.

    With ``per_datum`` each row has a density of its own, by which model and rows' densities are moved; the policy's
    guide then follows by regression on draws of theirs, so that rows which were held out can be measured.

    >>> from gymnasium import spaces
    >>> from latentpg.imitation import MaximumLikelihood
    >>> from latentpg.policies import MixturePolicy
    >>> with seeded(0):
    ...     rows = FitRows(torch.randn(32, 2), torch.randn(32, 1), torch.arange(32) // 4)
    ...     policy = MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), num_components=2, hidden=(8,))
    >>> cloner = Cloner(policy, rows, objective=MaximumLikelihood(), options=FitOptions(num_epochs=2), seed=0)
    >>> first, second = cloner.update(), cloner.update()
    >>> second["train/log_prob"] > first["train/log_prob"], cloner.finished
    (True, True)
    """

    def __init__(
        self,
        policy: LatentPolicy,
        rows: FitRows,
        *,
        objective: Objective,
        options: FitOptions = FitOptions(),  # noqa: B008 (a frozen choice without state)
        seed: int,
        validation: FitRows | None = None,
        per_datum: PerDatum | None = None,
    ) -> None:
        """Set up an optimiser for each set of parameters, and a chain for every row if the objective keeps one."""
        if not isinstance(policy, nn.Module):
            raise OptionError("Cloner()", "`policy`", expected="an nn.Module", got=type(policy).__name__)
        self.policy, self.rows, self.validation, self.per_datum = policy, rows, validation, per_datum
        self.objective, self.options, self.seed = objective, options, seed
        if per_datum is not None:
            self._check_local(per_datum)
        if isinstance(objective, ExpectationMaximization):
            self._check_em(options)
        limit, rate = options.max_grad_norm, options.learning_rate
        guide_rate = rate if options.guide_learning_rate is None else options.guide_learning_rate
        self._rates = (rate, guide_rate, guide_rate)
        climbed = climbed_parameters(policy, options.match_prior_every)
        self.model = Descent(named_among(policy, climbed), learning_rate=rate, max_grad_norm=limit)
        self.guide = Descent(
            named_among(policy, policy.guide_parameters()), learning_rate=guide_rate, max_grad_norm=limit
        )
        own = {} if per_datum is None else dict(per_datum.named_parameters())
        self.local = Descent(own, learning_rate=guide_rate)  # never clipped: a row's step is its own
        self.ascent = (
            objective.ascent(policy)
            if isinstance(objective, ExpectationMaximization) and not isinstance(policy, ClosedFormMaximizer)
            else None
        )
        with seeded(stream_seed(seed, "start")):
            self.measure = measure_for(policy, rows.obs, options.valid_particles)
            self.chain: dict[str, Tensor] = self._start_chain()
        self.num_timesteps = self.num_updates = 0
        self.best, self.best_epoch, self.since_best = -math.inf, 0, 0
        self.best_policy: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether all epochs are over, or nothing has been gained for as long as patience lasts."""
        return self.num_updates >= self.options.num_epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether patience is at its end."""
        return 0 < self.options.patience <= self.since_best

    def update(self, progress: float | None = None) -> dict[str, float]:
        """Fit for one epoch and measure; ``progress`` in [0, 1] is the share of the fit that is over, or else its own.

        Returns metrics by name: ``train/`` means over the epoch as it went, ``valid/`` after it, on what is held out or
        else on the rows themselves. Likelihoods and divergences are in nats a row.
        """
        every = self.options.match_prior_every
        with seeded(stream_seed(self.seed, f"epoch {self.num_updates}")), bounded(self.rows):
            if every is not None and self.num_updates == 0:
                match_prior(self.policy, self.rows)
            if isinstance(self.objective, ExpectationMaximization):
                metrics = self._fit_by_em(self.objective)
            else:
                metrics = self._fit(progress)
        self.num_updates += 1
        self.num_timesteps += self.rows.size
        last = self.num_updates == self.options.num_epochs
        measured = last or self.num_updates % self.options.evaluate_every == 0
        if every is not None and (measured or self.num_updates % every == 0):
            with bounded(self.rows):
                match_prior(self.policy, self.rows)
        if measured:
            metrics |= self._evaluate()
        return {"epoch": float(self.num_updates), **metrics}

    def load_best(self) -> None:
        """Put the parameters of the best measurement back into the policy."""
        if self.best_policy:
            self.policy_module.load_state_dict(self.best_policy)

    @property
    def policy_module(self) -> nn.Module:
        """The policy as a module."""
        assert isinstance(self.policy, nn.Module)
        return self.policy

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next epoch hangs on, as tensors by name."""
        return {
            **prefixed("policy", self.policy_module.state_dict()),
            **prefixed("model", self.model.state()),
            **prefixed("guide", self.guide.state()),
            **prefixed("local", self.local.state()),
            **prefixed("per_datum", {} if self.per_datum is None else self.per_datum.state_dict()),
            **prefixed("ascent", {} if self.ascent is None else self.ascent.state()),
            **prefixed("chain", self.chain),
            **prefixed("best_policy", self.best_policy),
            "best": torch.tensor(self.best, dtype=torch.float64),
            "best_epoch": torch.tensor(self.best_epoch),
            "since_best": torch.tensor(self.since_best),
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken, in a cloner built alike."""
        self.policy_module.load_state_dict(under("policy", state))
        self.model.restore(under("model", state))
        self.guide.restore(under("guide", state))
        self.local.restore(under("local", state))
        if self.per_datum is not None:
            self.per_datum.load_state_dict(under("per_datum", state))
        if self.ascent is not None:
            self.ascent.restore(under("ascent", state))
        here = self.rows.device  # checkpoints are on the processor
        self.chain = {name: value.to(here, copy=True) for name, value in under("chain", state).items()}
        self.best_policy = {name: value.to(here, copy=True) for name, value in under("best_policy", state).items()}
        self.best, self.best_epoch = float(state["best"]), int(state["best_epoch"])
        self.since_best = int(state["since_best"])
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _fit(self, progress: float | None) -> dict[str, float]:
        means, share = Means(), 0.0
        parts = list(self._minibatches())
        for place, part in enumerate(parts):
            own = (self.num_updates + place / len(parts)) / self.options.num_epochs
            share = min(1.0, own) if progress is None else progress
            self._set_rates(share)
            means.add(self._step(part, share))
        return {**means.values(), "train/learning_rate": self._rates[0] * self.options.rate(share)}

    def _minibatches(self) -> Iterator[Int[Tensor, " M"]]:
        return minibatches(torch.arange(self.rows.size, device=self.rows.device), self.options.batch_size)

    def _fit_by_em(self, options: ExpectationMaximization) -> dict[str, float]:
        taken = em_step(self.policy, self.rows, options=options, ascent=self.ascent)
        metrics = {"train/log_prob": taken.log_prob, "train/gain": taken.gain, "train/halvings": taken.num_halvings}
        means = Means()
        if self.guide.parameters:
            self._set_rates(min(1.0, self.num_updates / self.options.num_epochs))
            for part in self._minibatches():
                losses = self._losses(part, 0.0)
                if losses.guide is not None:
                    length = self.guide.step(losses.guide.mean() / self.rows.dimensions)
                    means.add(
                        {"train/guide_loss": float(losses.guide.detach().mean()), "train/guide_grad_norm": length}
                    )
        return {name: float(value) for name, value in metrics.items()} | means.values()

    def _step(self, part: Int[Tensor, " M"], progress: float) -> dict[str, float]:
        losses = self._losses(part, progress)
        taught = self.guide if self.per_datum is None else self.local
        # what is divided by is a constant of the data; densities of rows' own are climbed by their sum
        rows = self.rows.dimensions if self.per_datum is None else 1.0 / len(part)
        model_loss = losses.model.mean() / self.rows.dimensions
        check_finite("the loss", model_loss.detach())
        taught_loss = None if losses.guide is None else losses.guide.mean() / rows
        shared = losses.guide is losses.model and self.per_datum is None
        if shared:
            both = torch.autograd.grad(
                model_loss,
                [*self.model.parameters, *taught.parameters],
                allow_unused=True,
                materialize_grads=True,
            )
            first, second = both[: len(self.model.parameters)], both[len(self.model.parameters) :]
        else:
            first = self.model.gradients(model_loss, retain_graph=losses.guide is losses.model)
            second = () if taught_loss is None else taught.gradients(taught_loss)
        told = {"train/loss": float(losses.model.detach().mean()), "train/grad_norm": self.model.move(first)}
        if taught_loss is not None and taught.parameters:
            check_finite("the guide's loss", taught_loss.detach())
            assert losses.guide is not None
            told |= {"train/guide_loss": float(losses.guide.detach().mean())}
            told |= {"train/guide_grad_norm": taught.move(second)}
        if self.per_datum is not None:
            self._regress(part)
        return told | {f"train/{name}": float(value.mean()) for name, value in losses.info.items()}

    def _losses(self, part: Int[Tensor, " M"], progress: float) -> Losses:
        rows = self.rows.take(part)
        policy = self.policy if self.per_datum is None else self.per_datum.at(self.policy, part)
        state = {name: value[part] for name, value in self.chain.items()} or None
        obs = with_noise(rows.obs, self.options.observation_noise)
        losses = self.objective.losses(policy, obs, rows.action, latents=state, progress=progress)
        if losses.latents is not None and self.chain:
            for name, value in losses.latents.items():
                self.chain[name][part] = value
        return losses

    def _regress(self, part: Int[Tensor, " M"]) -> None:
        """Move psi towards draws of the rows' own densities."""
        if not self.guide.parameters:
            return
        assert self.per_datum is not None
        rows = self.rows.take(part)
        with torch.no_grad():
            view = self.per_datum.at(self.policy, part)
            latents = guide_terms(view, rows.obs, rows.action, num_particles=1).drawn.latents
        self.guide.step(-score_guide(self.policy, rows.obs, rows.action, latents).log_prob.mean())

    def _evaluate(self) -> dict[str, float]:
        rows = self.rows if self.validation is None else self.validation
        with seeded(stream_seed(self.seed, "validation")), torch.no_grad():
            log_prob = float(mean_log_prob(self.policy, rows, self.measure))
            metrics = {"valid/log_prob": log_prob}
            if self.guide.parameters:
                metrics["valid/kl"] = mean_kl(self.policy, rows)
        self.since_best += 1
        if log_prob > self.best + self.options.min_gain or not self.best_policy:
            self.best, self.best_epoch, self.since_best = log_prob, self.num_updates, 0
            self.best_policy = {name: value.detach().clone() for name, value in self.policy_module.state_dict().items()}
        return {**metrics, "valid/best": self.best}

    def _set_rates(self, progress: float) -> None:
        factor = self.options.rate(progress)
        for descent, rate in zip((self.model, self.guide, self.local), self._rates, strict=True):
            descent.set_rate(rate * factor)

    def _start_chain(self) -> dict[str, Tensor]:
        if not isinstance(self.objective, ScoreClimbing):
            return {}
        start = PosteriorIS(1, self.objective.proposal).propose(self.policy, self.rows.obs, self.rows.action)
        return {name: value[0].clone() for name, value in start.latents.items()}

    def _check_em(self, options: FitOptions) -> None:
        """Refuse what would be silently left out: EM's steps are on rows as they are, and phi is part of its M step."""
        for name in ("observation_noise", "match_prior_every"):
            if getattr(options, name):
                raise OptionError(
                    "Cloner()",
                    f"`{name}` with expectation and maximisation",
                    expected=f"{name}={getattr(FitOptions(), name)}",
                    got=f"{name}={getattr(options, name)}",
                    likely="a recipe for another objective",
                )

    def _check_local(self, per_datum: PerDatum) -> None:
        bound = isinstance(self.objective, VariationalBound | ImportanceBound)
        if per_datum.num_rows != self.rows.size or not bound:
            raise OptionError(
                "Cloner()",
                "`per_datum`",
                expected=f"a density for each of the {self.rows.size} rows, and a bound as objective",
                got=f"{per_datum.num_rows} densities and {self.objective!r}",
                fix="PerDatum(policy, rows) with VariationalBound() or ImportanceBound()",
            )
