"""The list of guards fits the package as it is; `make mutations` takes them out."""

from pathlib import Path

import pytest

from tests.mutations.guards import GUARDS, Guard

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_where_the_list_says(guard: Guard) -> None:
    source = (ROOT / guard.path).read_text(encoding="utf-8")
    assert source.count(guard.before) == 1 and guard.before != guard.after
    compile(source.replace(guard.before, guard.after), guard.path, "exec")
    assert all((ROOT / word).exists() for tests in guard.tests for word in tests.partition(" -k ")[0].split())


def test_every_guard_has_a_name_of_its_own() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS) >= 10
