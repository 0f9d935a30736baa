"""What the policy's latent spans, and which algorithms can learn from it: a step, a chunk of actions, an episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from latentpg.errors import OptionError
from latentpg.training.parts import SELECTORS, Selection

SPANS: Mapping[str, str] = {"chunk": "chunk", "episode": "episode"}
"""What the latent of a policy spans, by the policy's name; where it is not here, an algorithm may choose."""

ONCE: Mapping[str | None, str] = {None: "a step, or an episode", "chunk": "a chunk", "episode": "an episode"}
"""How often a latent is drawn, in words."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {"ppo": {"num_episodes": 16}, "reinforce": {"credit": "total"}}
"""What an algorithm does with a latent that spans several steps, unless told otherwise."""


def spans_of(algo: str) -> tuple[str, ...]:
    """Return the spans of a latent that an algorithm can learn from.

    >>> spans_of("grpo"), spans_of("reinforce"), spans_of("a2c")
    (('step', 'chunk', 'episode'), ('step', 'episode'), ('step',))
    """
    return get_args(get_type_hints(SELECTORS["algo"][algo]).get("latent")) or ("step",)


def with_span(values: Mapping[str, Any], selection: Selection, *, where: str) -> Mapping[str, Any]:
    """Let the algorithm learn from the span of the policy's latent, which is refused where it cannot."""
    span = SPANS.get(selection.policy)
    if span is None:
        return values
    if span not in spans_of(selection.algo):
        able = [algo for algo in SELECTORS["algo"] if span in spans_of(algo)]
        raise OptionError(
            where,
            f"a latent of policy {selection.policy} spans several steps, which {selection.algo} has no rows for",
            expected=f"--algo {' or '.join(able)}",
            got=f"--algo {selection.algo}",
            fix=f"--algo {able[0]}, or a policy whose latent is drawn at every step",
        )
    return {"latent": span, **DEFAULTS.get(selection.algo, {}), **values}


def check_span(policy: str, algorithm: object) -> None:
    """Refuse an algorithm's options that speak of another span than the policy's latent has."""
    found, wanted = span_in(algorithm), SPANS.get(policy)
    if wanted not in (None, found) or (found == "chunk" and wanted is None):
        raise OptionError(
            "training",
            f"policy {policy} draws its latent once {ONCE[wanted]}",
            expected=f'latent "{wanted or "step"}"',
            got=f'latent "{found}"',
            fix="leave it out" if wanted else "--policy chunk decides on chunks",
        )


def span_in(algorithm: object) -> str:
    """Return the span of a latent as an algorithm's options have it."""
    return str(getattr(algorithm, "latent", "step"))
