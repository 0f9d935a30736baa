"""The shared list: every estimator and guide objective, and what it claims of itself. A new one is a line here.

The examiner (``tests/examiner``) holds each entry to its claims, on models that Hypothesis draws, by summing over every
outcome of the real ``propose`` and ``estimate`` (or ``loss``); and each entry, whatever it claims, to the contract of
its protocol. ``make`` takes the number of particles K.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from latentpg.estimators import (
    ELBO,
    ConditionalIS,
    Estimator,
    Exact,
    Guide,
    JointScore,
    MarkovianIS,
    Mixture,
    PosteriorIS,
    Prior,
    Quadrature,
    Reparameterized,
    SplitIS,
    WakeSleep,
)
from latentpg.estimators.guides import (
    IWAE,
    VIMCO,
    ConditionalWake,
    DoublyReparameterized,
    ELBOGuide,
    GuideObjective,
    Recorded,
    ScoreELBO,
    Sleep,
    StickingTheLanding,
    Wake,
)


class Claim(Enum):
    """What an estimator says of its expectation; the examiner has one test a claim."""

    EXACT = "value and gradient are log pi and its gradient, without noise"
    GRADIENT = "the gradient is that of log pi in expectation, where the particles retain a posterior draw"
    RATIO = "the ratio on stored particles, and its gradient, are pi_new / pi_old and its gradient in expectation"
    BOUND = "value and gradient are those of the evidence lower bound in expectation"
    SELF_NORMALISED = "value and gradient are those of K-particle importance sampling: biased by O(1/K)"
    LOWER = "the value is at most log pi in expectation"
    UPPER = "the value is at least log pi in expectation, where the particles retain a posterior draw"


DISCRETE = ("step", "span", "two-site")
NOISE = ("noise",)
STAYS_EXACT = (Claim.GRADIENT, Claim.RATIO)
BIASED = (Claim.SELF_NORMALISED, Claim.LOWER)


@dataclass(frozen=True)
class EstimatorCase:
    """One line of the list; ``id`` tells apart several configurations of one name in the registry."""

    name: str
    make: Callable[[int], Estimator]
    claims: tuple[Claim, ...]
    kinds: tuple[str, ...] = DISCRETE
    """The kinds of model (``tests/examiner/models.py``) it can be examined on."""
    proposal: str = "none"
    """What its fresh particles are drawn from."""
    uses_recorded: bool = False
    """It makes use of a recorded latent when there is one."""
    needs_recorded: bool = False
    """It raises when there is none."""
    fewest: int = 1
    """The smallest K."""
    fixed_size: bool = False
    """K is not its to choose."""

    @property
    def id(self) -> str:
        return "-".join([self.name, *([self.proposal] if self.proposal != "none" else [])])


ESTIMATOR_CASES: list[EstimatorCase] = [
    EstimatorCase("exact", lambda k: Exact(), (Claim.EXACT, *STAYS_EXACT), fixed_size=True),
    EstimatorCase("quadrature", lambda k: Quadrature(), (Claim.EXACT, *STAYS_EXACT), fixed_size=True),
    EstimatorCase(
        "joint-score", lambda k: JointScore(), STAYS_EXACT, uses_recorded=True, needs_recorded=True, fixed_size=True
    ),
    *[
        EstimatorCase(
            "conditional-is",
            lambda k, proposal=proposal: ConditionalIS(k, proposal),  # type: ignore[misc]
            (*STAYS_EXACT, Claim.UPPER),
            proposal=name,
            uses_recorded=True,
            needs_recorded=True,
        )
        for name, proposal in (("prior", Prior()), ("guide", Guide()), ("mixture", Mixture(0.25)))
    ],
    *[
        EstimatorCase(
            "posterior-is",
            lambda k, proposal=proposal: PosteriorIS(k, proposal),  # type: ignore[misc]
            BIASED,
            proposal=name,
        )
        for name, proposal in (("prior", Prior()), ("guide", Guide()), ("mixture", Mixture(0.25)))
    ],
    EstimatorCase("wake-sleep", lambda k: WakeSleep(k), BIASED, proposal="guide"),
    EstimatorCase("split-is", lambda k: SplitIS(k, k, Guide()), BIASED, proposal="guide"),
    EstimatorCase("elbo", lambda k: ELBO(k), (Claim.BOUND, Claim.LOWER), proposal="guide"),
    EstimatorCase(
        "markovian-is",
        lambda k: MarkovianIS(k, num_sweeps=1),
        (*STAYS_EXACT, Claim.UPPER),
        proposal="guide",
        uses_recorded=True,
        fewest=2,
    ),
    EstimatorCase("reparameterized", lambda k: Reparameterized(k), BIASED, NOISE, proposal="prior"),
    EstimatorCase(
        "reparameterized",
        lambda k: Reparameterized(k, retain=True),
        (*STAYS_EXACT, Claim.UPPER),
        NOISE,
        proposal="retained",
        uses_recorded=True,
        needs_recorded=True,
    ),
]
"""Every estimator, in each configuration that claims something of its own."""


class Target(Enum):
    """What a guide objective's expected loss has the gradient of, in psi."""

    BOUND = "minus the evidence lower bound"
    MULTI_SAMPLE_BOUND = "minus the K-particle importance-weighted bound"
    INCLUSIVE = "KL(p(z | s, a) || q)"
    DREAM = "KL(p(z | s, a) || q), averaged over the policy's own actions"
    SELF_NORMALISED = "the K-particle importance-sampling estimate of minus the cross entropy: biased by O(1/K)"


PATHWISE = ("gaussian",)


@dataclass(frozen=True)
class GuideCase:
    """One line of the list of guide objectives."""

    name: str
    make: Callable[[int], GuideObjective]
    target: Target
    kinds: tuple[str, ...] = DISCRETE
    """The kinds of model it is examined on; ``gaussian`` stands for a latent with pathwise gradients."""
    fewest: int = 1
    particles: Callable[[int], Estimator] | None = None
    """Whose stored particles it works on, if it does not draw its own."""
    uses_recorded: bool = False
    fixed_size: bool = False
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or self.name)


GUIDE_CASES: list[GuideCase] = [
    GuideCase("elbo", ELBOGuide, Target.BOUND, (*DISCRETE, *PATHWISE, "mixed")),
    GuideCase("elbo-score", ScoreELBO, Target.BOUND, (*DISCRETE, *PATHWISE)),
    GuideCase("elbo-stl", StickingTheLanding, Target.BOUND, PATHWISE),
    GuideCase("iwae", IWAE, Target.MULTI_SAMPLE_BOUND, PATHWISE),
    GuideCase("iwae-dreg", DoublyReparameterized, Target.MULTI_SAMPLE_BOUND, ("gaussian-limit",)),
    GuideCase("vimco", VIMCO, Target.MULTI_SAMPLE_BOUND, fewest=2),
    GuideCase("wake", Wake, Target.SELF_NORMALISED, fewest=2),
    GuideCase("sleep", Sleep, Target.DREAM),
    GuideCase("recorded", lambda k: Recorded(), Target.INCLUSIVE, uses_recorded=True, fixed_size=True),
    *[
        GuideCase(
            "conditional-wake",
            lambda k: ConditionalWake(),
            Target.INCLUSIVE,
            particles=lambda k, proposal=proposal: ConditionalIS(k, proposal),  # type: ignore[misc]
            uses_recorded=True,
            id=f"conditional-wake-{name}",
        )
        for name, proposal in (("prior", Prior()), ("guide", Guide()))
    ],
]
"""Every guide objective."""
