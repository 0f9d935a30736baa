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
from latentpg.runs import FORMAT_VERSION
from latentpg.studies.sources import SOURCES
from latentpg.studies.spec import TARGETS, Line, Study

MAX_BYTES = 2**20
"""The largest study file that is read."""

_KEYS = ("title", "seed", "num_replicates", "num_timings", "x", "skip_invalid", "source", "axes", "targets", "lines")
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
        if path.stat().st_size > MAX_BYTES:
            raise _error(path, "it is too large", expected=f"at most {MAX_BYTES} bytes", got=str(path.stat().st_size))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, "it cannot be read", expected="a TOML file", got=str(error)) from error
    return parse_study(text, name=path.stem, where=str(path))


def parse_study(text: str, *, name: str, where: str | None = None) -> Study:
    """Build a study from the text of a study file."""
    place = where or f"study {name}"
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _error(place, "it is not TOML", expected="a TOML document", got=str(error) or "too deep") from error
    if content.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise _error(place, "format_version", expected=str(FORMAT_VERSION), got=repr(content["format_version"]))
    _check_keys(place, content, [*_KEYS, *_NOTES])
    targets = {}
    for table in _tables(place, content, "targets") or [{"kind": "gradient"}]:
        options = dict(table)
        label = options.pop("name", None)
        target = _build(place, "target", TARGETS, options)
        targets[_text(place, "targets.name", label or table.get("kind"))] = target
    chosen: dict[str, Any] = {
        key: content[key] for key in ("seed", "num_replicates", "num_timings", "x", "skip_invalid") if key in content
    }
    axes = {axis: _values(place, axis, values) for axis, values in _table(place, content, "axes").items()}
    if axes:
        chosen["axes"] = axes
        chosen.setdefault("x", next(iter(axes)))
    return Study(
        name=_text(place, "study", content.get("study", name)),
        title=_text(place, "title", content.get("title", name)),
        source=_build(place, "source", SOURCES, dict(_table(place, content, "source"))),
        targets=targets,
        lines=tuple(_line(place, dict(table)) for table in _tables(place, content, "lines")),
        **chosen,
    )


def _line(place: str, options: dict[str, Any]) -> Line:
    roles = [role for role in ("estimator", "objective") if role in options]
    if len(roles) != 1:
        raise _error(place, "a line", expected="`estimator` or `objective`", got=str(sorted(options)))
    name, proposal = _text(place, roles[0], options.pop(roles[0])), options.pop("proposal", None)
    line = Line(name, proposal, options, role="estimator" if roles == ["estimator"] else "objective")
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
    return line


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
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
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


def _values(place: str, axis: str, values: object) -> tuple[Any, ...]:
    if not isinstance(values, list) or not all(isinstance(each, int | float | str) for each in values):
        raise _error(place, f"axis `{axis}`", expected="a list of numbers or of words", got=repr(values)[:80])
    return tuple(values)


def _text(place: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _error(place, f"`{key}`", expected="text", got=repr(value))
    return value


def _error(place: object, what: str, *, expected: str, got: str, fix: str | None = None) -> StudyError:
    return StudyError(str(place), what, expected=expected, got=got, fix=fix)
