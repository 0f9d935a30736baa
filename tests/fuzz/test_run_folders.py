"""Run folders that somebody changed: evaluated and gone on with, or refused in one message, and nothing else."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentpg import cli
from latentpg.runs import newest_checkpoint, save_checkpoint
from latentpg.training import begin_run, prepared, train
from tests.fuzz.values import INTEGERS, SCALARS, examples, mutated
from tests.training.runs import after, no_figure, small

pytestmark = pytest.mark.production  # what is fed here is of the wrong type on purpose

FILES = (
    "config.toml",
    "run.json",
    "metrics.jsonl",
    "metrics.csv",
    "result.json",
    "checkpoints/best.json",
    "manifest.json",
    "facts.json",
    "tensors.safetensors",
)
"""Files of a run's folder; the last three are those of its newest checkpoint."""


@pytest.fixture(autouse=True)
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two updates of 32 steps; one more is to come."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = small(total_timesteps=96, hidden=[4], normalize_reward=True, proposal="guide", eval_every=1000)
    with pytest.MonkeyPatch.context() as patch, prepared(config) as built:
        patch.setattr("latentpg.training.loop.draw_curve", no_figure)
        train(config, built, begin_run(config, out=folder), stop=after(2))
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Iterator[Any]:
    """Hand out what makes a fresh copy, for Hypothesis asks for many within one test."""

    def copied() -> Path:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stopped, folder)
        return folder

    return copied  # type: ignore[return-value]


def command(*words: str) -> int:
    before, sys.argv = sys.argv, ["latentpg", *words]
    try:
        return cli.main()
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code
    finally:
        sys.argv = before


def answers(folder: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """See that a command does it or says why not."""
    status = command(what, str(folder), *(["--episodes", "4"] if what == "evaluate" else []))
    told = capsys.readouterr()
    assert status in (0, 2) and "Traceback" not in told.err
    assert status == 0 or "Error in " in told.err or "Fault in " in told.err


@pytest.mark.parametrize("what", ["evaluate", "resume"])
@examples(8)
@given(data=st.data())
def test_a_run_with_a_changed_file(
    what: str,
    run: Any,  # noqa: ANN401 (what copies)
    data: st.DataObject,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run()
    name = data.draw(st.sampled_from(FILES))
    newest = max((folder / "checkpoints").glob("step-*"))
    file = folder / name if "/" in name or (folder / name).exists() else newest / name
    file.write_bytes(data.draw(mutated(file.read_bytes())))
    answers(folder, what, capsys)


@st.composite
def spoilt(draw: st.DrawFn, value: Tensor) -> Tensor:
    """Change a tensor's values, type or shape."""
    odd = draw(st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1.0, 3.0, 255.0, 1e30]))
    match draw(st.sampled_from(["value", "values", "dtype", "shape", "scalar"])):
        case "value" if value.numel():
            changed = value.clone().flatten()
            changed[draw(st.integers(0, value.numel() - 1))] = _within(odd, value.dtype)
            return changed.view(value.shape)
        case "values":
            return torch.full_like(value, _within(odd, value.dtype))
        case "dtype":
            return value.to(draw(st.sampled_from([torch.float64, torch.int64, torch.uint8, torch.bool])))
        case "shape":
            return value.unsqueeze(0)
        case _:
            return torch.tensor(odd)


def _within(odd: float, dtype: torch.dtype) -> float | int:
    if dtype.is_floating_point:
        return odd
    largest = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    return int(min(max(odd, 0 if dtype in (torch.bool, torch.uint8) else -1), largest)) if odd == odd else 0


ODD_FACTS = st.one_of(
    SCALARS.filter(lambda value: not isinstance(value, str) or value not in ("nan", "inf", "-inf")),
    st.none(),
    st.lists(INTEGERS, max_size=2),
    st.dictionaries(st.text(max_size=3), INTEGERS, max_size=2),
)


@pytest.mark.parametrize("what", ["evaluate", "resume"])
@examples(10)
@given(data=st.data())
def test_a_checkpoint_whose_digests_are_right_and_whose_content_is_not(
    what: str,
    run: Any,  # noqa: ANN401 (what copies)
    data: st.DataObject,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever can write to a folder can make all digests right."""
    folder = run()
    saved = newest_checkpoint(folder / "checkpoints")
    state, facts = dict(saved.state), dict(saved.facts)
    name = data.draw(st.sampled_from([*state, *(f"fact {fact}" for fact in facts)]))
    how = data.draw(st.sampled_from(["change", "drop"]))
    if name.startswith("fact "):
        fact = name.removeprefix("fact ")
        facts.pop(fact)
        facts |= {fact: data.draw(ODD_FACTS)} if how == "change" else {}
    else:
        value = state.pop(name)
        state |= {name: data.draw(spoilt(value))} if how == "change" else {}
    shutil.rmtree(folder / "checkpoints")
    try:
        save_checkpoint(folder / "checkpoints", state, facts, step=saved.step)
    except ValueError:  # an integer of too many digits is no fact
        return
    answers(folder, what, capsys)
