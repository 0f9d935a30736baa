"""Metrics: lines as they come, a table with every column, and what a run that goes on makes of them."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from latentpg.errors import StudyError
from latentpg.training.log import STEPS, MetricsLog, read_metrics

ROWS = [{STEPS: 0, "eval/mean_reward": 1.5}, {STEPS: 8, "train/loss": math.nan}, {STEPS: 16, "train/loss": 0.25}]


def written(folder: Path) -> MetricsLog:
    log = MetricsLog(folder)
    for row in ROWS:
        log.add(row)
    return log


def test_lines_are_json_and_come_back(tmp_path: Path) -> None:
    written(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {"format_version": 1, STEPS: 8, "train/loss": "nan"}
    rows = read_metrics(tmp_path)
    assert rows[0] == ROWS[0] and rows[2] == ROWS[2] and math.isnan(rows[1]["train/loss"])


def test_the_table_has_every_column(tmp_path: Path) -> None:
    written(tmp_path).close()
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [STEPS, "eval/mean_reward", "train/loss", "format_version"]
    assert [row["eval/mean_reward"] for row in rows] == ["1.5", "", ""]


@pytest.mark.parametrize(("steps", "kept"), [(None, 0), (0, 1), (8, 2), (100, 3)])
def test_a_run_that_goes_on_keeps_what_was_before(steps: int | None, kept: int, tmp_path: Path) -> None:
    written(tmp_path)
    log = MetricsLog(tmp_path, steps=steps)
    assert len(log.rows) == kept
    log.add({STEPS: 200})
    assert len(read_metrics(tmp_path)) == kept + 1


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    written(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"format_version": 1, "time/tot')
    assert len(read_metrics(tmp_path)) == 3


@pytest.mark.parametrize(
    "line", ["nonsense", '{"format_version": 2, "time/total_timesteps": 1}', '{"format_version": 1}', "[1]"]
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(StudyError, match="line 1"):
        read_metrics(tmp_path)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        read_metrics(tmp_path)


def test_tensorboard_is_told_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str, purge_step: int | None) -> None:
            assert log_dir == str(tmp_path / "tensorboard") and purge_step is None

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append(("closed", 0.0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("latentpg.training.log.importlib.util.find_spec", lambda name: object())
    log = MetricsLog(tmp_path)
    log.add(ROWS[0])
    log.close()
    assert told == [(STEPS, 0, 0), ("eval/mean_reward", 1.5, 0), ("closed", 0.0, 0)]


def test_nothing_is_written_for_tensorboard_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentpg.training.log.importlib.util.find_spec", lambda name: None)
    written(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "metrics.csv"}


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read event files as TensorBoard does: what a later file takes back is not shown."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_event_files_hold_the_same_numbers_under_the_same_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra")
    written(tmp_path).close()
    found = scalars_in(tmp_path / "tensorboard")
    assert found.keys() == {STEPS, "eval/mean_reward", "train/loss"}
    assert found[STEPS] == [(0, 0), (8, 8), (16, 16)] and found["eval/mean_reward"] == [(0, 1.5)]
    assert [step for step, _ in found["train/loss"]] == [8, 16] and found["train/loss"][1][1] == 0.25


def test_a_run_that_goes_on_shows_each_step_once(tmp_path: Path) -> None:
    """A kill came after step 16, and the last checkpoint was of step 8."""
    pytest.importorskip("tensorboard", reason="an extra")
    written(tmp_path).close()
    log = MetricsLog(tmp_path, steps=8)
    for steps in (16, 24):
        log.add({STEPS: steps, "train/loss": 2.0 * steps})
    log.close()
    found = scalars_in(tmp_path / "tensorboard")
    assert [step for step, _ in found[STEPS]] == [0, 8, 16, 24]
    assert found["train/loss"][1:] == [(16, 32.0), (24, 48.0)]
    shown = [(int(row[STEPS]), row["train/loss"]) for row in read_metrics(tmp_path) if "train/loss" in row]
    assert found["train/loss"][1:] == shown[1:]
