"""Run folders are made once and never written over; their files are whole or absent and say their format."""

import csv
import json
import math
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import latentpg
from latentpg.errors import StudyError
from latentpg.runs import (
    FORMAT_VERSION,
    create_run_folder,
    describe_circumstances,
    publish,
    write_csv,
    write_json,
    write_parquet,
)
from latentpg.runs.files import to_toml, write_toml
from latentpg.runs.folder import RunFolder


def make(out: Path | None = None, *, name: str = "toy") -> RunFolder:
    return create_run_folder(name, config={"source": {"rows": 3}}, command="latentpg study toy", seed=5, out=out)


def test_a_folder_holds_configuration_and_circumstances(tmp_path: Path) -> None:
    folder = make(tmp_path / "deep" / "run")
    config = tomllib.loads(folder.file("config.toml").read_text("utf-8"))
    assert config == {"format_version": FORMAT_VERSION, "study": "toy", "source": {"rows": 3}}
    record = json.loads(folder.file("run.json").read_text("utf-8"))
    assert record["format_version"] == FORMAT_VERSION
    assert (record["study"], record["seed"], record["command"]) == ("toy", 5, "latentpg study toy")
    assert record["versions"]["latentpg"] == latentpg.__version__
    assert record["versions"]["torch"].startswith("2.")
    assert record["hardware"]["cores"] == os.cpu_count()


def test_the_default_folder_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [make().path for _ in range(3)]  # within one second, most likely
    assert len(set(paths)) == 3
    assert all(path.is_absolute() and path.parent == tmp_path / "runs" for path in paths)
    assert all(path.name.startswith("toy-2") for path in paths)


def test_a_run_of_another_study_is_named_and_kept(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", name="other")
    before = folder.file("config.toml").read_bytes()
    with pytest.raises(StudyError, match="a run of study 'other'"):
        make(tmp_path / "run")
    assert folder.file("config.toml").read_bytes() == before


@pytest.mark.parametrize("record", [None, "{", "[1]", '{"study": 3}'])
def test_a_folder_of_anything_else_is_kept(tmp_path: Path, record: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    with pytest.raises(StudyError, match="never writes over") as caught:
        make(tmp_path)
    assert "thesis.tex" in str(caught.value)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "config.toml").exists()


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert make(tmp_path).path == tmp_path


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="is a file"):
        make(tmp_path / "file")
    with pytest.raises(StudyError, match="cannot be made"):
        make(tmp_path / "file" / "run")


def test_publishing_replaces_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    publish(path, b"first")
    publish(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    publish(path, b"first")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        publish(path, b"second, and longer")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


KILLED = """
import os, sys
from pathlib import Path
from latentpg.runs import publish
os.replace = lambda *_: os._exit(9)  # the process dies when the content is written and the name is not
publish(Path(sys.argv[1]), b"half")
"""


def test_a_killed_writer_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    publish(path, b"first")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=Path(latentpg.__file__).parents[1], timeout=60
    )
    assert killed.returncode == 9
    assert path.read_bytes() == b"first"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_published_files_have_ordinary_permissions(tmp_path: Path) -> None:
    publish(tmp_path / "file", b"")
    (tmp_path / "ordinary").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "ordinary")]
    assert modes[0] == modes[1]


def test_tables_are_read_back_as_written(tmp_path: Path) -> None:
    rows = [{"name": 'a, "b"', "value": 0.1 + 0.2, "none": None}, {"name": "∇", "value": math.inf, "none": 1}]
    write_csv(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["name"] for row in found] == ['a, "b"', "∇"]
    assert [float(row["value"]) for row in found] == [0.1 + 0.2, math.inf]
    assert [row["none"] for row in found] == ["", "1"]
    assert {row["format_version"] for row in found} == {str(FORMAT_VERSION)}


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]])
def test_tables_without_one_set_of_columns_are_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(StudyError):
        write_csv(tmp_path / "table.csv", rows)
    assert not (tmp_path / "table.csv").exists()


def test_json_has_no_number_that_json_lacks(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [math.inf, math.nan, 1.5], "y": {"z": (1, 2)}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "a.json").read_text("utf-8"), parse_constant=refuse)
    assert found == {"format_version": FORMAT_VERSION, "x": ["inf", "nan", 1.5], "y": {"z": [1, 2]}}


def test_toml_is_read_back_as_written(tmp_path: Path) -> None:
    content = {
        "text": 'quote " slash \\ line \n bell \x07 del \x7f ∇',
        "flag": True,
        "number": 1e-3,
        "big": 2**40,
        "list": [1, 2.5, "x"],
        "empty": [],
        "a key": {"inner": {"deep": 1}},
        "tables": [{"a": 1, "sub": {"b": 2}}, {"a": 2}],
        "last": {},
    }
    write_toml(tmp_path / "a.toml", {**content, "nothing": None})
    found = tomllib.loads((tmp_path / "a.toml").read_text("utf-8"))
    assert found == {"format_version": FORMAT_VERSION, **content}


def test_what_toml_lacks_is_refused() -> None:
    with pytest.raises(StudyError, match="object"):
        to_toml({"x": object()})


def test_the_commit_is_this_repositorys_or_none() -> None:
    commit = describe_circumstances()["commit"]
    is_checkout = (Path(latentpg.__file__).parents[1] / ".git").exists()
    assert commit is None if not is_checkout else len(commit.partition("+")[0]) == 40


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"K": 1, "word": "a", "value": 0.5, "exact": True},
        {"K": None, "word": None, "value": math.inf, "exact": False},
    ]
    assert write_parquet(tmp_path / "t.parquet", rows)
    read = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert read == [{**row, "format_version": FORMAT_VERSION} for row in rows]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_without_pyarrow_there_is_no_parquet_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not write_parquet(tmp_path / "t.parquet", [{"a": 1}])
    assert not list(tmp_path.iterdir())


@pytest.mark.production
def test_parquet_wants_equal_columns(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="write_parquet"):
        write_parquet(tmp_path / "t.parquet", [{"a": 1}, {"b": 1}])
