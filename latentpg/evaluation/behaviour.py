r"""What roll-outs did: how often they succeeded, and in how many of the ways that were demonstrated.

Every function takes one entry a roll-out: ``success [N]``, true where the task was done, and ``mode [N]``, which of the
M ways was taken, counted from zero. What a failed roll-out has for a mode is never looked at; -1 will do. Modes are
counted over successes alone: a policy that fails in many ways has no diversity to be praised for.

Roll-outs are taken to be independent draws from one law. Where they come from several contexts (start states, goals)
that is not so, and :func:`context_entropy` asks of each context how many ways were found in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.evaluation.clustered import check_clusters, clustered_interval
from latentpg.evaluation.report import as_text
from latentpg.numerics.statistics import LEVEL, Interval

UNSEEN_ROLLOUTS = 0.5
"""Successes that all unseen modes together are given, at least, where the bootstrap draws its roll-outs."""

PSEUDO_COUNT = 0.5
"""Successes added to each mode before its frequency is compared with the demonstrations' (Krichevsky and Trofimov)."""


def wilson_interval(successes: int, trials: int, *, level: float = LEVEL) -> Interval:
    r"""Estimate a success rate, with the interval of rates that a normal test does not reject.

    .. math:: \frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}

    It has a length also where every trial succeeded, or none (E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", 1927). Trials are independent.

    >>> interval = wilson_interval(10, 10)
    >>> interval.value, round(interval.low, 3), interval.high
    (1.0, 0.722, 1.0)
    """
    if not (0 <= successes <= trials and trials >= 1):
        raise OptionError(
            "wilson_interval()",
            "`successes` and `trials`",
            expected="0 <= successes <= trials, and one trial or more",
            got=f"{successes} of {trials}",
        )
    z, share = _normal_quantile("wilson_interval()", level), successes / trials
    center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    low = 0.0 if successes == 0 else center - reach
    high = 1.0 if successes == trials else center + reach
    return Interval(share, low, high)


def miller_madow_entropy(counts: Float[Tensor, "*R M"]) -> Float[Tensor, "*R"]:
    r"""Compute :math:`-\sum_m \hat p_m\log\hat p_m + (\hat M - 1)/2n`, in nats, :math:`\hat M` the modes seen.

    The first term alone is too small by about :math:`(M-1)/2n`, whatever the law (G. A. Miller, "Note on the bias of
    information estimates", 1955). NaN where nothing was counted.

    >>> miller_madow_entropy(torch.tensor([2.0, 2.0, 0.0])).item() == math.log(2) + 1 / 8
    True
    """
    counts = counts.double()
    total = counts.sum(-1)
    share = counts / total.unsqueeze(-1)
    return -torch.xlogy(share, share).sum(-1) + ((counts > 0).sum(-1) - 1) / (2 * total)


def mode_entropy(
    mode: Int[Tensor, " N"],
    success: Bool[Tensor, " N"],
    *,
    num_modes: int,
    level: float = LEVEL,
    num_resamples: int = 2000,
) -> Interval:
    r"""Estimate the entropy of the mode of a successful roll-out, as a share of :math:`\log M`, in [0, 1].

    The value is Miller and Madow's. A percentile bootstrap is of no use here: resamples of n roll-outs see fewer modes
    than the n did, so that their entropy lies below the one that they should surround; where modes are even the whole
    interval misses the truth. Here the resamples lend their spread alone, shifted onto the estimate:

    .. math:: [\hat H + \min(s, 0) + q_{\alpha/2}(\hat H^* - \bar H^*),\;
               \hat H + \max(s, 0) + q_{1-\alpha/2}(\hat H^* - \bar H^*)].

    They are drawn from a law that knows of unseen modes: those share the chance of Good and Turing, (modes seen
    once)/n, and at least 1/2n; so the spread is not zero when all n roll-outs took one way. What Miller and Madow's
    correction leaves of the bias *in that law*, :math:`s = H(p^*) - \bar H^*`, lengthens the interval on its side. Ends
    are cut off at 0 and 1. Draws come from the ambient stream. Without a success it is NaN.
    """
    where = "mode_entropy()"
    counts = _counts(where, mode, success, num_modes)
    if num_modes < 2:
        raise OptionError(where, "`num_modes`", expected="2 or more, to have an entropy", got=repr(num_modes))
    if num_resamples < 100:
        raise OptionError(
            where, "`num_resamples`", expected="at least 100", got=repr(num_resamples), fix="num_resamples=2000"
        )
    _normal_quantile(where, level)
    total = int(counts.sum())
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    law = _law_with_unseen(counts)
    index = torch.multinomial(law, num_resamples * total, replacement=True).reshape(num_resamples, total)
    drawn = torch.zeros(num_resamples, num_modes, dtype=torch.float64, device=law.device)
    drawn.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    entropies = miller_madow_entropy(drawn)
    shift = float(-torch.xlogy(law, law).sum() - entropies.mean())
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=law.dtype, device=law.device)
    low, high = (entropies - entropies.mean()).quantile(ends).tolist()
    value, most = float(miller_madow_entropy(counts)), math.log(num_modes)

    def cut(nats: float) -> float:
        return min(max(nats / most, 0.0), 1.0)

    return Interval(cut(value), cut(value + min(shift, 0.0) + low), cut(value + max(shift, 0.0) + high))


@dataclass(frozen=True)
class ContextEntropy:
    """Normalised mode entropy within a context, averaged over contexts, with those without a success kept apart.

    ``solved`` averages over the contexts in which some roll-out succeeded, and so flatters a policy that has given up
    the hard ones; ``every`` counts a context in which all fail as one without any diversity, 0. Report both, with
    ``num_failed`` of ``num_contexts``.
    """

    solved: Interval
    every: Interval
    num_contexts: int
    num_failed: int


def context_entropy(
    mode: Int[Tensor, " N"],
    success: Bool[Tensor, " N"],
    context: Int[Tensor, " N"],
    *,
    num_modes: int,
    level: float = LEVEL,
) -> ContextEntropy:
    r"""Estimate the entropy of modes *given* the context, as a share of :math:`\log M`, and average it over contexts.

    A policy that goes left in every second context, and always there, has a large entropy over all roll-outs and none
    in any context. Each context's entropy is Miller and Madow's, cut off at 1, which a dozen roll-outs a context do not
    rid of all its bias; intervals are Student's over contexts.
    """
    where = "context_entropy()"
    _counts(where, mode, success, num_modes)
    if num_modes < 2:
        raise OptionError(where, "`num_modes`", expected="2 or more, to have an entropy", got=repr(num_modes))
    names, index = check_clusters(where, context, len(mode)).unique(return_inverse=True)
    counts = torch.zeros(len(names), num_modes, dtype=torch.float64)
    counts.index_put_((index[success], mode[success].long()), torch.ones(int(success.sum())).double(), accumulate=True)
    found = (miller_madow_entropy(counts) / math.log(num_modes)).clamp(max=1.0)
    failed = counts.sum(-1) == 0
    solved = Interval(math.nan, math.nan, math.nan)
    if not bool(failed.all()):
        solved = clustered_interval(found[~failed], torch.arange(int((~failed).sum())), level=level)
    every = clustered_interval(found.masked_fill(failed, 0.0), torch.arange(len(names)), level=level)
    return ContextEntropy(solved, every, len(names), int(failed.sum()))


def mode_coverage(counts: Float[Tensor, " M"], demonstrated: Float[Tensor, " M"]) -> float:
    """Return the share of demonstrated modes that succeeded at least once; it grows with the number of roll-outs.

    >>> mode_coverage(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([4.0, 4.0, 0.0]))
    0.5
    """
    _check_counts("mode_coverage()", counts, demonstrated)
    wanted = demonstrated > 0
    return float((counts[wanted] > 0).double().mean())


def smoothed_kl(
    counts: Float[Tensor, " M"], demonstrated: Float[Tensor, " M"], *, pseudo_count: float | int = PSEUDO_COUNT
) -> float:
    r"""Compute :math:`\sum_m p_m\log(p_m/q_m)` in nats, p the demonstrations' frequencies, q the successes' smoothed.

    :math:`q_m = (n_m + \epsilon)/(n + M\epsilon)`, finite where a mode was never reached. The more roll-outs, the more
    a missing mode costs, so that two policies are compared at the same number of successes. Without a success there
    are no frequencies and it is NaN: smoothing alone would call such a policy even.

    >>> round(smoothed_kl(torch.tensor([9.0, 0.0]), torch.tensor([1.0, 1.0])), 3)  # q = .95, .05
    0.83
    """
    _check_counts("smoothed_kl()", counts, demonstrated)
    if not pseudo_count > 0:
        raise OptionError(
            "smoothed_kl()", "`pseudo_count`", expected="a number > 0", got=repr(pseudo_count), fix="pseudo_count=0.5"
        )
    if float(counts.sum()) == 0:
        return math.nan
    target = demonstrated.double() / demonstrated.sum()
    found = (counts.double() + pseudo_count) / (counts.sum() + len(counts) * pseudo_count)
    return float((torch.xlogy(target, target) - torch.xlogy(target, found)).sum())


@dataclass(frozen=True)
class Behaviour:
    """Success, diversity and likeness to the demonstrations, of one set of roll-outs; see :func:`measure_behaviour`."""

    success: Interval
    entropy: Interval
    coverage: float
    divergence: float
    counts: Float[Tensor, " M"]
    contexts: ContextEntropy | None

    def lines(self) -> list[str]:
        """Say it in words, one line a number."""
        reached = int((self.counts > 0).sum())
        lines = [
            f"success {as_text(self.success)}",
            f"mode entropy over {int(self.counts.sum())} successes {as_text(self.entropy)}, as a share of log M",
            f"{100 * self.coverage:.0f} % of the demonstrated modes reached ({reached} modes of {len(self.counts)})",
            f"KL of the demonstrations' modes to the roll-outs' {self.divergence:.3f} nats, smoothed",
        ]
        if self.contexts is not None:
            each = self.contexts
            lines += [
                f"{each.num_failed} of {each.num_contexts} contexts without a success",
                f"entropy within a context {as_text(each.solved)} over the others, {as_text(each.every)} over all",
            ]
        return lines


def measure_behaviour(
    mode: Int[Tensor, " N"],
    success: Bool[Tensor, " N"],
    demonstrated: Float[Tensor, " M"],
    *,
    context: Int[Tensor, " N"] | None = None,
    level: float = LEVEL,
) -> Behaviour:
    """Measure N roll-outs against how often each of the M modes was demonstrated."""
    size = len(demonstrated)
    counts = _counts("measure_behaviour()", mode, success, size)
    within = None if context is None else context_entropy(mode, success, context, num_modes=size, level=level)
    return Behaviour(
        wilson_interval(int(success.sum()), len(success), level=level),
        mode_entropy(mode, success, num_modes=size, level=level),
        mode_coverage(counts, demonstrated),
        smoothed_kl(counts, demonstrated),
        counts,
        within,
    )


def _law_with_unseen(counts: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Take from the modes seen what Good and Turing say of the unseen (I. J. Good, 1953), and share it out evenly."""
    total, unseen = counts.sum(), counts == 0
    if not bool(unseen.any()):
        return counts / total
    once = float((counts == 1).sum())
    mass = max(min(once, float(total) - 1), UNSEEN_ROLLOUTS) / float(total)
    return torch.where(unseen, mass / unseen.sum(), (1 - mass) * counts / total)


def _counts(where: str, mode: Tensor, success: Tensor, num_modes: int) -> Float[Tensor, " M"]:
    """Count successes by mode, and refuse labels that are none."""
    if success.ndim != 1 or len(success) == 0 or success.dtype != torch.bool or mode.shape != success.shape:
        raise ShapeError(
            where,
            "`mode` and `success`",
            expected="one integer and one truth value a roll-out: [N] each, N >= 1, dtype torch.bool for `success`",
            got=f"{list(mode.shape)} of {mode.dtype}, {list(success.shape)} of {success.dtype}",
            fix="success.bool()" if mode.shape == success.shape else None,
        )
    taken = check_clusters(where, mode, len(success))[success]
    if bool(((taken < 0) | (taken >= num_modes)).any()):
        raise OptionError(
            where,
            "a successful roll-out without a mode",
            expected=f"modes from 0 to {num_modes - 1} wherever `success` is true",
            got=f"{taken.min()} to {taken.max()}",
            fix="give ways that nobody named a mode of their own",
        )
    return torch.bincount(taken, minlength=num_modes).double()


def _check_counts(where: str, counts: Tensor, demonstrated: Tensor) -> None:
    if counts.shape != demonstrated.shape or counts.ndim != 1:
        raise ShapeError(
            where,
            "`demonstrated`",
            expected=f"one number a mode, as `counts`: {list(counts.shape)}",
            got=str(list(demonstrated.shape)),
        )
    for name, values in (("counts", counts), ("demonstrated", demonstrated)):
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise OptionError(where, f"`{name}`", expected="finite numbers >= 0", got=str(values.tolist()[:8]))
    if not float(demonstrated.sum()) > 0:
        raise OptionError(where, "`demonstrated`", expected="at least one demonstration", got="none")


def _normal_quantile(where: str, level: float) -> float:
    if not 0.0 < level < 1.0:
        raise OptionError(where, "`level`", expected="a number in (0, 1)", got=repr(level), fix="level=0.95")
    return NormalDist().inv_cdf(0.5 + level / 2)
