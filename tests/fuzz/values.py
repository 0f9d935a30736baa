"""What somebody might write into a file or on a command line: of the wrong type, absurd, or nearly right."""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from latentpg.training.parts import COMMON, SELECTORS, Selection, options_of

THOROUGHNESS = int(os.environ.get("LATENTPG_FUZZ", "1"))
"""How many times as many examples are drawn as in the fast tests; with HYPOTHESIS_PROFILE=explore they are new ones."""


def examples(number: int) -> settings:
    """Return settings that draw so many examples, or as many times more as were asked for."""
    calm = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=number * THOROUGHNESS, deadline=None, suppress_health_check=calm)


SELECTED = {name: list(known) for name, known in SELECTORS.items()}

OPTIONS = sorted(
    {name for part, maker in COMMON.items() for name in options_of(part, maker)}
    | {
        name
        for selector, known in SELECTORS.items()
        for maker in known.values()
        for name in options_of(selector, maker)
    }
)
"""Every option that any run has."""

NAMES = [*Selection.__dataclass_fields__, *OPTIONS]

INTEGERS = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, -(2**31), 2**53 + 1, 2**63, 2**64, 10**30, 10**400]))

FLOATS = st.one_of(
    st.floats(-2, 2), st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 1e-30])
)

ODD_WORDS = (
    *("", " ", "none", "None", "true", "nan", "1e999", "0x10", "-", "--", "=", "é", "\x00", "\u200b", "\U0001d6d1"),
    *("../..", "a:b", "os:system", "CartPole-v1", "CartPole", "latentpg/Avoiding-v0", "[1, 2]", "9" * 5000),
)

WORDS = st.one_of(st.sampled_from(ODD_WORDS), st.text(max_size=12))

SCALARS = st.one_of(INTEGERS, FLOATS, WORDS, st.booleans())

TOML_KEYS = st.one_of(st.sampled_from(NAMES), st.text(max_size=8))

TOML_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def spelled(value: Any) -> str:  # noqa: ANN401 (any value)
    """Spell a value as a shell hands it on: without the characters that no argument can hold."""
    return str(value).replace("\x00", "\\0").encode("utf-8", "replace").decode()


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, flip, repeat, replace or insert somewhere in a file's content."""
    place = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(["cut", "flip", "insert", "replace", "repeat", "whole"]))
    match how:
        case "cut":
            return content[:place]
        case "flip" if place < len(content):
            return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
        case "insert":
            return content[:place] + draw(st.binary(max_size=8)) + content[place:]
        case "replace":
            end = draw(st.integers(place, min(place + 40, len(content))))
            new = draw(st.one_of(st.binary(max_size=8), SCALARS.map(lambda value: spelled(value).encode())))
            return content[:place] + new + content[end:]
        case "repeat":
            end = draw(st.integers(place, min(place + 200, len(content))))
            return content[:end] + content[place:end] + content[end:]
        case _:
            return draw(
                st.one_of(
                    st.binary(max_size=64),
                    st.text(max_size=64).map(str.encode),
                    st.sampled_from([b"[" * 100_000, b"{" * 100_000, b'{"a":' * 50_000, b"a." * 50_000 + b"a = 1",
                                     b"\x80\x04\x95", b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"PAR1"]),
                )
            )  # fmt: skip
