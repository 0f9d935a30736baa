"""Cells that are stored come back as they were; what is damaged is named, what is another study's refused."""

import json
import math
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentpg.errors import StudyError
from latentpg.runs import FORMAT_VERSION
from latentpg.studies.cellfile import DamagedError, Row, StoredCell, decode, encode
from latentpg.studies.store import MAX_BYTES, CellStore, fingerprint_of

FINGERPRINT = fingerprint_of({"seed": 0})
ROWS: list[Row] = [
    {"measure": "bias", "value": 0.1, "K": 8, "exact": True, "low": None},
    {"measure": "snr", "value": -0.0},
]


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path, FINGERPRINT)


def rewrite(path: Path, **changes: object) -> None:
    """Change fields of a cell's file, and give it the digest that belongs to them."""
    body = {**json.loads(path.read_text("utf-8")), **changes}
    del body["digest"]
    path.write_text(json.dumps({**body, "digest": fingerprint_of(body)}), "utf-8")


def test_a_cell_comes_back_as_it_was(store: CellStore) -> None:
    assert store.finished() == set()
    store.write("posterior-is, K=8", ROWS, 1.5)
    cell = store.read("posterior-is, K=8")
    assert cell == StoredCell(FINGERPRINT, "posterior-is, K=8", tuple(ROWS), 1.5)
    assert [[type(value) for value in row.values()] for row in cell.rows] == [
        [str, float, int, bool, type(None)],
        [str, float],
    ]
    assert math.copysign(1, cell.rows[1]["value"]) == -1  # type: ignore[arg-type]
    assert store.finished() == {"posterior-is, K=8"}


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda t: t not in "nan -inf")


@given(st.text(), st.lists(st.dictionaries(st.text(), PLAIN, max_size=4), max_size=4), st.floats(0, 1e9))
def test_every_value_of_a_table_survives(key: str, rows: list[dict[str, Any]], seconds: float) -> None:
    cell = decode(encode(StoredCell(FINGERPRINT, key, tuple(rows), seconds)))
    assert repr(cell) == repr(StoredCell(FINGERPRINT, key, tuple(rows), seconds))  # NaN differs from itself


def test_infinity_and_nan_are_text_in_the_file_and_numbers_again(store: CellStore) -> None:
    store.write("a", [{"x": math.inf, "y": -math.inf, "z": math.nan, "w": np.float64("nan")}], 0.0)
    held = json.loads(store.path("a").read_text("utf-8"), parse_constant=pytest.fail)
    assert held["rows"] == [{"x": "inf", "y": "-inf", "z": "nan", "w": "nan"}]
    assert held["format_version"] == FORMAT_VERSION
    (row,) = store.read("a").rows
    assert (row["x"], row["y"]) == (math.inf, -math.inf)
    assert math.isnan(row["z"]) and math.isnan(row["w"])  # type: ignore[arg-type]


def test_a_cell_is_there_once(store: CellStore) -> None:
    for value in (1.0, 2.0):
        store.write("a", [{"value": value}], value)
    store.write("b", ROWS, 0.0)
    assert len(list(store.cells.iterdir())) == 2
    assert store.read("a").rows == ({"value": 2.0},)


@pytest.mark.production
@pytest.mark.parametrize(
    "rows",
    [
        [{"value": torch.tensor(1.0)}],
        [{"value": np.int64(3)}],
        [{"value": [1.0]}],
        [{"value": "nan"}],  # would come back as a number
        [{"value": "half a pair \ud800"}],
        [{3: 1.0}],
        ["value"],
        "rows",
        None,
    ],
)
def test_what_no_table_holds_is_refused(store: CellStore, rows: Any) -> None:  # noqa: ANN401 (hostile)
    with pytest.raises(StudyError, match="study cells"):
        store.write("a", rows, 0.0)
    assert not store.cells.exists()


def test_a_cell_that_could_not_be_read_back_is_refused(store: CellStore) -> None:
    with pytest.raises(StudyError, match="'a' is too large"):
        store.write("a", [{"text": "x" * MAX_BYTES}], 0.0)


def deeply_nested(path: Path) -> None:
    path.write_text("[" * 200_000)


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(50 * 2**30)  # sparse: takes no room


def endless_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flipped(path: Path) -> None:
    """Turn one bit of the digit of a number."""
    content = path.read_bytes()
    at = content.index(b"0.1") + 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "cut short"),
    "cut short": (lambda path: os.truncate(path, path.stat().st_size // 2), "cut short"),
    "one bit": (flipped, "digest differs"),
    "no digest": (lambda path: path.write_text('{"key": "a"}'), "digest differs"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "another type": (lambda path: path.write_text("[1]"), "JSON object"),
    "endless number": (lambda path: path.write_text("9" * 10_000), "not JSON"),
    "deeply nested": (deeply_nested, "not JSON"),
    "huge": (huge, "more than"),
    "pipe": (endless_pipe, "regular file"),
    "link": (link, ""),
    "folder": (folder, "regular file"),
    "half a surrogate pair": (lambda path: path.write_text('{"key": "\\ud800", "digest": "0"}'), "no cell can hold"),
    "rows of another type": (lambda path: rewrite(path, rows={"a": 1}), "rows are missing"),
    "row of another type": (lambda path: rewrite(path, rows=[[1]]), "rows are missing"),
    "rows not flat": (lambda path: rewrite(path, rows=[{"a": {"b": 1}}]), "not flat"),
    "key of another type": (lambda path: rewrite(path, key=3), "another type"),
    "seconds of another type": (lambda path: rewrite(path, seconds=10**400), "another type"),
    "fingerprint of another type": (lambda path: rewrite(path, fingerprint=None), "another type"),
    "another cell's": (lambda path: rewrite(path, key="c"), "another name"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cell_is_named_and_counts_as_missing(store: CellStore, damage: str) -> None:
    store.write("a", ROWS, 1.0)
    store.write("b", ROWS, 1.0)
    change, why = DAMAGES[damage]
    change(store.path("a"))
    survey = store.survey()
    assert survey.finished == {"b"}
    assert list(survey.damaged) == [store.path("a").name]
    assert why in survey.damaged[store.path("a").name]
    with pytest.raises(StudyError, match="cell 'a' cannot be read"):
        store.read("a")
    if damage == "folder":
        with pytest.raises(StudyError, match="cannot be written"):
            store.write("a", ROWS, 1.0)
    else:
        store.write("a", ROWS, 1.0)
        assert store.survey() == type(survey)(frozenset({"a", "b"}), {})


def test_any_flipped_bit_is_found_out() -> None:
    """Every bit of a small file in turn: the cell is refused, or is the same cell as before."""
    cell = StoredCell("f", "key", ({"value": 0.1, "exact": True},), 1.0)
    content = encode(cell)
    for at in range(8 * len(content)):
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        try:
            assert decode(bytes(changed)) == cell
        except DamagedError:
            pass


@pytest.mark.parametrize("changes", [{"fingerprint": fingerprint_of({"seed": 1})}, {"format_version": 2}])
def test_a_folder_of_another_study_is_refused(store: CellStore, changes: dict[str, object]) -> None:
    store.write("a", ROWS, 1.0)
    store.write("b", ROWS, 1.0)
    rewrite(store.path("b"), **changes)
    for ask in (store.survey, store.finished, lambda: store.read("b")):
        with pytest.raises(StudyError, match="belongs to another study") as caught:
            ask()
        assert str(store.path("b")) in str(caught.value)


def test_a_missing_cell_is_named(store: CellStore) -> None:
    with pytest.raises(StudyError, match="cell 'a' cannot be read") as caught:
        store.read("a")
    assert "No such file" in str(caught.value)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(StudyError, match="cells cannot be made"):
        CellStore(tmp_path, FINGERPRINT).write("a", ROWS, 1.0)


def test_one_run_at_a_time_writes_to_a_folder(store: CellStore) -> None:
    with store.held():
        with pytest.raises(StudyError, match="another run is writing"), CellStore(store.folder, FINGERPRINT).held():
            pass
    with store.held():
        pass


def test_what_a_killed_run_left_is_cleared(store: CellStore) -> None:
    store.write("a", ROWS, 1.0)
    (store.cells / f".{store.path('b').name}.x1.tmp").write_bytes(b"half")
    with store.held():
        assert list(store.cells.iterdir()) == [store.path("a")]


def test_a_fingerprint_belongs_to_one_configuration() -> None:
    config = {"seed": 0, "num_particles": (1, 2), "source": {"kind": "toy", "scale": 1.0, "file": None}}
    same = {"source": {"file": None, "scale": 1.0, "kind": "toy"}, "num_particles": [1, 2], "seed": 0}
    others: list[dict[str, Any]] = [
        {**config, "seed": 1},
        {**config, "seed": True},
        {**config, "num_particles": (2, 1)},
        {**config, "extra": None},
        {**config, "source": {**same["source"], "scale": math.nextafter(1.0, 2)}},  # type: ignore[dict-item]
    ]
    assert fingerprint_of(config) == fingerprint_of(same)
    assert len({fingerprint_of(each) for each in [config, *others]}) == 6
    with pytest.raises(StudyError, match="fingerprint"):
        fingerprint_of({"file": Path("x")})


def test_a_thousand_cells_are_read_well_under_a_second_and_one_at_a_time(store: CellStore) -> None:
    rows: list[Row] = [
        {"estimator": "posterior-is", "measure": f"m{i}", "value": i / 7, "low": 0.1, "high": 0.3} for i in range(9)
    ]
    keys = [f"cell {index}" for index in range(1000)]
    for key in keys:
        path = store.path(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(StoredCell(FINGERPRINT, key, tuple(rows), 1.0)))  # without the flush to disk
    start = time.process_time()  # which busy neighbours do not stretch
    assert store.finished() == set(keys)
    assert time.process_time() - start < 0.8
    tracemalloc.start()
    try:
        store.finished()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20, "all rows together would take 3 MB"
