"""The registry: every name builds what the shared list examines, and a configuration is a value."""

import ast
import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import latentpg.estimators as package
from latentpg.errors import OptionError
from latentpg.estimators import (
    ESTIMATORS,
    GUIDE_OBJECTIVES,
    PROPOSALS,
    ClosedForm,
    Compiled,
    ConditionalIS,
    Estimator,
    Guide,
    Mixture,
    PosteriorIS,
    Prior,
    Proposal,
    make_estimator,
    make_guide_objective,
)
from latentpg.estimators import guides as guides_package
from latentpg.estimators.guides import GuideObjective
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES

REGISTRIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "estimator": ESTIMATORS,
    "guide objective": GUIDE_OBJECTIVES,
    "proposal": PROPOSALS,
}
ENTRIES = [
    pytest.param(make, id=f"{kind}-{name}") for kind, registry in REGISTRIES.items() for name, make in registry.items()
]


def namesakes() -> dict[str, Any]:
    """Every public configuration class by its name, as a person who reads its ``repr`` would import them.

    ``Compiled`` is left out: it is a way to run any of them.
    """
    classes = {name: getattr(module, name) for module in (package, guides_package) for name in module.__all__}
    return {
        name: value
        for name, value in classes.items()
        if dataclasses.is_dataclass(value) and all(_has_default(field) for field in dataclasses.fields(value))
    }


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def changed(entry: Any) -> list[Any]:  # noqa: ANN401 (any configuration)
    """Vary each option of a configuration by itself."""
    others: list[Any] = []
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        other: Any
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = value + 1
        elif isinstance(value, float):
            other = value / 2
        else:
            assert type(value) in (Prior, Guide), f"a kind of option that this test does not know: {value!r}"
            other = Mixture(0.125)
        others.append(dataclasses.replace(entry, **{field.name: other}))
    return others


# ------------------------------------------------------------------------------------------------------- completeness


def test_every_public_estimator_and_objective_has_a_name() -> None:
    """A class that nobody registered is one that no command line reaches and no examiner meets.

    ``ClosedForm`` draws nothing and estimates nothing: it reads what a policy of its own kind computes, and the command
    that trains a plain policy chooses it by itself.
    """
    registered = {make for registry in REGISTRIES.values() for make in registry.values()}
    found = {value for value in namesakes().values() if isinstance(value(), Estimator | GuideObjective | Proposal)}
    assert found == registered | {ClosedForm}


def test_every_proposal_is_examined_in_every_estimator_that_takes_one_as_its_only_choice() -> None:
    """Names that the shared list's lines carry, against the registry; other names are checked in ``test_claims``."""
    for name in ("conditional-is", "posterior-is"):
        assert {case.proposal for case in ESTIMATOR_CASES if case.name == name} == set(PROPOSALS)
        for case in ESTIMATOR_CASES:
            if case.name == name:
                estimator = case.make(3)
                assert isinstance(estimator, ConditionalIS | PosteriorIS)
                assert type(estimator.proposal) is PROPOSALS[case.proposal]


def test_lines_of_the_shared_list_are_told_apart() -> None:
    for ids in ([case.id for case in ESTIMATOR_CASES], [case.id for case in GUIDE_CASES]):
        assert len(ids) == len(set(ids))


def test_names_are_spelt_alike() -> None:
    for registry in REGISTRIES.values():
        for name in registry:
            assert name == name.lower() and name.replace("-", "").isalnum()


# ------------------------------------------------------------------------------------------------------------- making


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_made_by_name_with_their_options(name: str) -> None:
    assert make_estimator(name) == make_estimator(name, {}) == ESTIMATORS[name]()
    for other in changed(make_estimator(name)):
        options = {field.name: getattr(other, field.name) for field in dataclasses.fields(other)}
        assert make_estimator(name, options) == other != make_estimator(name)


@pytest.mark.parametrize("name", GUIDE_OBJECTIVES)
def test_objectives_are_made_by_name_with_their_options(name: str) -> None:
    assert make_guide_objective(name) == make_guide_objective(name, {}) == GUIDE_OBJECTIVES[name]()
    for other in changed(make_guide_objective(name)):
        assert make_guide_objective(name, dataclasses.asdict(other)) == other != make_guide_objective(name)


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize(
    "name", [n for n, make in ESTIMATORS.items() if "proposal" in inspect.signature(make).parameters]
)
def test_a_proposal_goes_by_its_name_in_every_estimator_that_takes_one(name: str, proposal: str) -> None:
    by_name = make_estimator(name, {"proposal": proposal, "num_particles": 4})
    assert by_name == make_estimator(name, {"proposal": PROPOSALS[proposal](), "num_particles": 4})
    assert type(by_name.proposal) is PROPOSALS[proposal]  # type: ignore[attr-defined]


def test_the_caller_s_options_are_not_changed() -> None:
    options = {"num_particles": 4, "proposal": "guide"}
    make_estimator("conditional-is", options)
    assert options == {"num_particles": 4, "proposal": "guide"}


# ------------------------------------------------------------------------------------------------------------- errors


def close_misses(name: str) -> list[str]:
    """Two slips of the hand in a name: a letter left out, and two in each other's place."""
    middle = len(name) // 2
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    return [slip for slip in (name[:middle] + name[middle + 1 :], swapped) if slip != name]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_slip_in_an_estimator_s_name_is_answered_with_the_name(name: str) -> None:
    for slip in close_misses(name):
        with pytest.raises(OptionError) as caught:
            make_estimator(slip)
        assert "did you mean" in str(caught.value) and name in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize("name", GUIDE_OBJECTIVES)
def test_a_slip_in_an_objective_s_name_is_answered_with_the_name(name: str) -> None:
    for slip in close_misses(name):
        with pytest.raises(OptionError) as caught:
            make_guide_objective(slip)
        assert "did you mean" in str(caught.value) and name in str(caught.value).splitlines()[-1]


def test_a_name_that_is_like_none_gets_the_list() -> None:
    with pytest.raises(OptionError) as caught:
        make_estimator("qqqqqq")
    for name in ESTIMATORS:
        assert name in str(caught.value).splitlines()[-1]
    with pytest.raises(OptionError, match="choose one of guide, mixture, prior"):
        make_estimator("posterior-is", {"proposal": "qqqqqq"})


@pytest.mark.parametrize("name", [*ESTIMATORS, *GUIDE_OBJECTIVES])
def test_options_that_are_none_are_named(name: str) -> None:
    """An option of another entry, one misspelt, and one where there are none at all."""
    make = make_estimator if name in ESTIMATORS else make_guide_objective
    with pytest.raises(OptionError) as caught:
        make(name, {"num_particle": 3})
    text = str(caught.value)
    takes = inspect.signature({**GUIDE_OBJECTIVES, **ESTIMATORS}[name]).parameters
    assert "`num_particle`" in text
    if "num_particles" in takes:
        assert "did you mean num_particles" in text
    elif not takes:
        assert "no options" in text and "drop `num_particle`" in text


# ------------------------------------------------------------------------------------------- configurations as values


@pytest.mark.parametrize("make", ENTRIES)
def test_a_configuration_is_a_value(make: Callable[[], Any]) -> None:
    entry = make()
    for twin in (make(), copy.deepcopy(entry), pickle.loads(pickle.dumps(entry))):
        assert twin == entry and hash(twin) == hash(entry) and type(twin) is type(entry)
    for other in changed(entry):
        assert other != entry and len({entry, other, make()}) == 2
        assert pickle.loads(pickle.dumps(other)) == other


@pytest.mark.parametrize("make", ENTRIES)
def test_its_repr_is_the_code_that_builds_it(make: Callable[[], Any]) -> None:
    for entry in (make(), *changed(make())):
        names = {name: value for name, value in namesakes().items() if name in repr(entry)}
        rebuilt = _rebuild(repr(entry), names)
        assert rebuilt == entry


def _rebuild(text: str, names: Mapping[str, Any]) -> Any:  # noqa: ANN401 (any configuration)
    """Build what a repr of nested calls with keyword arguments says, without running anything else."""

    def build(node: ast.expr) -> Any:  # noqa: ANN401 (any value)
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name) and not node.args
            return names[node.func.id](**{str(word.arg): build(word.value) for word in node.keywords})
        return ast.literal_eval(node)

    return build(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("make", ENTRIES)
def test_it_cannot_be_changed_behind_the_back_of_who_holds_it(make: Callable[[], Any]) -> None:
    entry = make()
    for field in dataclasses.fields(entry):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(entry, field.name, getattr(entry, field.name))


def test_configurations_of_different_classes_are_different() -> None:
    """Also those with the same options."""
    entries = [make() for registry in REGISTRIES.values() for make in registry.values()]
    assert len(set(entries)) == len(entries)


def test_the_compiled_kind_of_an_estimator_is_a_value_too() -> None:
    entry = Compiled(ConditionalIS(3, Guide()))
    assert entry == Compiled(ConditionalIS(3, Guide())) != Compiled(ConditionalIS(3))
    assert pickle.loads(pickle.dumps(entry)) == entry and len({entry, copy.copy(entry)}) == 1
    assert _rebuild(repr(entry), namesakes() | {"Compiled": Compiled}) == entry
