r"""A policy from the user's own Python file, named as ``path/to/file.py:NAME``.

Executing the file is what the user asks for by naming it. Nothing else executes code: no run folder and no data file
ever does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from latentpg.errors import StudyError, did_you_mean
from latentpg.programs import LatentPolicy

_WHERE = "the user's policy"


def file_of(named: str) -> str:
    """Return the file of ``path/to/file.py:NAME``.

    >>> file_of("policies/mine.py:make_policy")
    'policies/mine.py'
    """
    path, colon, name = named.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise StudyError(_WHERE, "not the name of a policy", expected="path/to/file.py:NAME", got=repr(named))
    return path


def load_policy(named: str) -> LatentPolicy:
    """Execute the file anew and return the policy NAME, or what NAME() returns.

    What the file draws comes from the ambient random stream. Modules beside the file can be imported by it; those that
    are installed go before them. A missing file or name, an exception in the user's code and a result that is not a
    :class:`~latentpg.programs.LatentPolicy` are each a :class:`~latentpg.errors.StudyError`.
    """
    path, name = Path(file_of(named)), named.rpartition(":")[2]
    if not path.is_file():
        raise StudyError(_WHERE, "no such file", expected="a Python file", got=str(path), fix="path/to/file.py:NAME")
    with _importable(path.resolve().parent):
        found = _execute(path)
        if not hasattr(found, name):
            public = [each for each in vars(found) if not each.startswith("_")]
            raise StudyError(
                _WHERE, f"no `{name}` in {path}", got=f"`{name}`", fix=did_you_mean(name, public) if public else None
            )
        value = getattr(found, name)
        # a class has the methods, too: only its instances are policies
        if inspect.isclass(value) or not isinstance(value, LatentPolicy):
            value = _call(named, value)
    if inspect.isclass(value) or not isinstance(value, LatentPolicy):
        methods = ("model", "guide", "prior_parameters", "decoder_parameters", "guide_parameters")
        lacking = [each for each in methods if not hasattr(value, each)]
        raise StudyError(
            _WHERE,
            f"`{named}` is not a policy",
            expected=f"an object with the methods {', '.join(methods)}, or a callable that returns one",
            got=f"{type(value).__name__}" + (f" without {', '.join(lacking)}" if lacking else ", a class"),
            fix="latentpg.policies.from_pyro(model, guide, obs, action) makes one of two Pyro programs",
        )
    if isinstance(value, nn.Module):
        value.to(torch.get_default_device())  # whatever the file itself asked for
    return value


def _call(named: str, value: object) -> object:
    if not callable(value):
        return value
    try:
        inspect.signature(value).bind()
    except ValueError:  # a builtin without a signature: calling it tells
        pass
    except TypeError as error:
        raise StudyError(
            _WHERE,
            f"`{named}` cannot be called without arguments",
            expected="a policy, or a callable without arguments that returns one",
            got=f"{type(value).__name__}: {error}",
            fix=f"def make_policy(): return {named.rpartition(':')[2]}(...)",
        ) from error
    try:
        return value()
    except (Exception, SystemExit) as error:
        raise _raised(f"calling `{named}` failed", error) from error


def _execute(path: Path) -> ModuleType:
    # a name of its own, which no import statement can hit; dataclasses and typing look a module up by its name
    name = f"_latentpg_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _raised(f"executing {path} failed", error) from error
    return module


def _raised(what: str, error: BaseException) -> StudyError:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f", {trace.tb_frame.f_code.co_filename} line {trace.tb_lineno}"
    return StudyError(_WHERE, what, got=f"{type(error).__name__}: {error}{place}")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
