"""Errors keep their message and their class on the way between processes."""

import pickle

import pytest

from latentpg import errors
from latentpg.errors import LatentPGError

FAMILIES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LatentPGError)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_error_survives_pickling(kind: type[LatentPGError]) -> None:
    error = kind("here()", "`this`", expected="that", got="something else", fix="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.args == error.args
