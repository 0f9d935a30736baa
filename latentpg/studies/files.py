"""Study files: a study described in TOML, or one that comes with the library under a name.

.. code-block:: toml

    title = "Bias of fresh particles"
    seed = 0
    num_replicates = 200

    [source]
    kind = "toys"
    num_latents = 4

    [axes]                       # crossed; each belongs to whoever has a field of its name
    num_particles = [1, 2, 4, 8]
    guide = ["prior", "exact"]

    [[targets]]
    kind = "gradient"
    parameters = "theta"

    [[lines]]
    estimator = "posterior-is"
    proposal = "guide"

Without ``[[targets]]`` the gradient of log pi is meant. The resolved file that a run folder keeps is a study file too.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from latentpg.errors import LatentPGError, OptionError, StudyError, did_you_mean
from latentpg.estimators import ESTIMATORS, GUIDE_OBJECTIVES
from latentpg.runs import FORMAT_VERSION
from latentpg.studies.declared import as_declared, check_cells
from latentpg.studies.sources import SOURCES
from latentpg.studies.spec import TARGETS, Line, Study, Target

MAX_BYTES = 2**16
"""The largest study file that is read."""

MAX_DOTS = 1000
"""The most dots on one line: the TOML reader's memory grows with the square of a dotted key's length."""

_KEYS = (
    "title",
    "seed",
    "num_replicates",
    "num_timings",
    "x",
    "panels",
    "figures",
    "skip_invalid",
    "source",
    "axes",
    "targets",
    "lines",
)
_NOTES = ("format_version", "study")  # what a run folder's config.toml says besides


def named_studies() -> list[str]:
    """List the names of the studies that come with the library.

    >>> "quickstart" in named_studies()
    True
    """
    folder = resources.files("latentpg.studies").joinpath("named")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def make_study(name: str) -> Study:
    """Return the study of a name, or of a file whose name ends in ``.toml``.

    >>> make_study("quickstart").num_particles
    (1, 2, 4, 8, 16, 32, 64)
    """
    if name.endswith(".toml"):
        return load_study(Path(name))
    if name not in named_studies():
        raise StudyError(
            "study",
            "unknown study",
            expected=f"a file FILE.toml, or one of {', '.join(named_studies())}",
            got=repr(name),
            fix=did_you_mean(name, named_studies()),
        )
    text = resources.files("latentpg.studies").joinpath("named", f"{name}.toml").read_text(encoding="utf-8")
    return parse_study(text, name=name)


def load_study(path: Path) -> Study:
    """Read a study file; the study is called by the file's name, or as the file says it was called before."""
    try:
        if path.exists() and not path.is_file():  # a pipe has no end
            raise _error(path, "it cannot be read", expected="a TOML file", got="something else of that name")
        if path.stat().st_size > MAX_BYTES:
            raise _error(path, "it is too large", expected=f"at most {MAX_BYTES} bytes", got=str(path.stat().st_size))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, "it cannot be read", expected="a TOML file", got=str(error)) from error
    return parse_study(text, name=path.stem, where=str(path))


def parse_study(text: str, *, name: str, where: str | None = None) -> Study:
    """Build a study from the text of a study file."""
    place = where or f"study {name}"
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise _error(place, "a line has too many dots", expected=f"at most {MAX_DOTS}", got="more")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number with thousands of digits is a ValueError of its own
        raise _error(place, "it is not TOML", expected="a TOML document", got=str(error) or "too deep") from error
    version = content.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION or type(version) is not int:  # 1.0 and true equal 1
        raise _error(place, "format_version", expected=str(FORMAT_VERSION), got=repr(content["format_version"]))
    _check_keys(place, content, [*_KEYS, *_NOTES])
    targets: dict[str, Target] = {}
    for table in _tables(place, content, "targets") or [{"kind": "gradient"}]:
        options = dict(table)
        label = _text(place, "targets.name", options.pop("name", table.get("kind", "")))
        if "name" in table and not label.strip():
            raise _error(place, "targets.name", expected="a name", got=repr(label), fix="leave `name` out")
        if label in targets:
            raise _error(place, "two targets", expected="a `name` of its own for each", got=f"{label} twice")
        targets[label] = _build(place, "target", TARGETS, options)
    chosen: dict[str, Any] = {
        key: content[key] for key in ("seed", "num_replicates", "num_timings", "skip_invalid") if key in content
    }
    if not isinstance(chosen.get("skip_invalid", False), bool):
        raise _error(place, "`skip_invalid`", expected="true or false", got=repr(chosen["skip_invalid"])[:80])
    for key in ("x", "panels"):
        if key in content:
            chosen[key] = _text(place, key, content[key])
    if "figures" in content:
        chosen["figures"] = tuple(_words(place, "figures", content["figures"]))
    source = _build(place, "source", SOURCES, dict(_table(place, content, "source")))
    lines = tuple(_line(place, dict(table)) for table in _tables(place, content, "lines"))
    makers: list[Callable[..., Any]] = [type(source), *map(type, targets.values())]
    makers += [maker for line in lines for maker in _makers(line)]
    axes = {axis: _values(place, axis, values, makers) for axis, values in _table(place, content, "axes").items()}
    if axes:
        chosen["axes"] = axes
        chosen.setdefault("x", next(iter(axes)))
    called = _text(place, "study", content.get("study", name))
    if not called.strip(".") or any(sign in called for sign in "/\\\0"):  # the default run folder bears it
        raise _error(place, "`study`", expected="a name that a folder can have", got=repr(called)[:80])
    title = _text(place, "title", content.get("title", name))
    study = Study(name=called, title=title, source=source, targets=targets, lines=lines, **chosen)
    check_cells(study)
    return study


def _line(place: str, options: dict[str, Any]) -> Line:
    names = {role: _text(place, role, options.pop(role)) for role in ("estimator", "objective") if role in options}
    if not names:
        raise _error(place, "a line", expected="`estimator`, `objective` or both", got=str(sorted(options)))
    proposal = options.pop("proposal", None)
    if proposal is not None:
        _text(place, "lines.proposal", proposal)
    name = next(iter(names.values()))
    if len(names) == 2:
        line = Line(name, proposal, options, objective=names["objective"])
    else:
        line = Line(name, proposal, options, role="estimator" if "estimator" in names else "objective")
    known = list(line.known_options())
    for option in options:
        if option not in known:
            raise _error(
                place,
                f"line `{name}`: unknown option `{option}`",
                expected=", ".join(known) or "no options",
                got=option,
                fix=did_you_mean(option, known),
            )
    for option, value in options.items():
        options[option] = as_declared(f"{place}, line {name}", _owner(_makers(line), option), option, value)
    return line


def _makers(line: Line) -> list[Callable[..., Any]]:
    """List what a line makes: an estimator, a guide objective, or one after the other."""
    first = (ESTIMATORS if line.role == "estimator" else GUIDE_OBJECTIVES)[line.estimator]
    return [first] if line.objective is None else [first, GUIDE_OBJECTIVES[line.objective]]


def _owner(makers: Sequence[Callable[..., Any]], name: str) -> Callable[..., Any]:
    return next((maker for maker in makers if name in inspect.signature(maker).parameters), makers[0])


def _build(place: str, what: str, known: Mapping[str, Callable[..., Any]], options: dict[str, Any]) -> Any:  # noqa: ANN401 (a source or a target)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in known:
        raise _error(
            place,
            f"unknown {what}",
            expected=f"kind = one of {', '.join(known)}",
            got=repr(kind),
            fix=did_you_mean(str(kind), known),
        )
    allowed = list(inspect.signature(known[kind]).parameters)
    for option in options:
        if option not in allowed:
            raise _error(
                place,
                f"{what} `{kind}`: unknown option `{option}`",
                expected=", ".join(allowed) or "no options",
                got=option,
                fix=did_you_mean(option, allowed),
            )
    frozen = {name: as_declared(f"{what} {kind}", known[kind], name, value) for name, value in options.items()}
    try:
        return known[kind](**frozen)
    except LatentPGError:
        raise
    except TypeError as error:
        raise OptionError(f"{what} {kind}", str(error), expected=", ".join(allowed), got=str(options)) from error


def _check_keys(place: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            fix = did_you_mean(key, known)
            raise _error(place, f"unknown key `{key}`", expected=", ".join(_KEYS), got=key, fix=fix)


def _table(place: str, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise _error(place, f"`{key}`", expected=f"a table [{key}]", got=repr(value))
    return value


def _tables(place: str, content: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    value = content.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _error(place, f"`{key}`", expected=f"tables [[{key}]]", got=repr(value)[:80])
    return value


def _values(place: str, axis: str, values: object, makers: Sequence[Callable[..., Any]]) -> tuple[Any, ...]:
    if not isinstance(values, list) or not all(isinstance(each, int | float | str) for each in values):
        raise _error(place, f"axis `{axis}`", expected="a list of numbers or of words", got=repr(values)[:80])
    owner = next((maker for maker in makers if axis in inspect.signature(maker).parameters), None)
    return tuple(values if owner is None else (as_declared(f"{place}, axis {axis}", owner, axis, v) for v in values))


def _words(place: str, key: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _error(place, f"`{key}`", expected="a list of words", got=repr(value)[:80])
    return value


def _text(place: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _error(place, f"`{key}`", expected="text", got=repr(value)[:80])
    return value


def _error(place: object, what: str, *, expected: str, got: str, fix: str | None = None) -> StudyError:
    return StudyError(str(place), what, expected=expected, got=got, fix=fix)
