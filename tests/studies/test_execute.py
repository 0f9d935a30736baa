"""Cells run in any number of processes give the same rows; whatever interrupts them, finished ones are kept."""

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from latentpg import errors
from latentpg.errors import LatentPGError, OptionError, StudyError
from latentpg.numerics.rng import seeded
from latentpg.studies.cellfile import Row, StoredCell
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore, fingerprint_of

ROOT = Path(__file__).parents[2]
KEYS = tuple(f"posterior-is, K={size}" for size in range(1, 13))
FINGERPRINT = fingerprint_of({"study": "toy"})


@dataclass(frozen=True)
class Draw:
    """Draws from a stream of the cell's own, and leaves a file for every call; ``trouble`` happens at one key."""

    calls: Path
    trouble: str = ""
    key: str = KEYS[5]
    seconds: float = 0.0

    def __call__(self, key: str) -> list[Row]:
        (self.calls / uuid4().hex).write_text(key)
        time.sleep(self.seconds)
        if key == self.key:
            make_trouble(self.trouble)
        with seeded(zlib.crc32(key.encode())):
            value = torch.randn(64, 64) @ torch.randn(64)
        return [
            {"cell": key, "value": float(value.sum()), "high": float("inf"), "threads": torch.get_num_threads()},
            {"cell": key, "value": float(value.std()), "high": float("nan"), "threads": None},
        ]


def make_trouble(kind: str) -> None:
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "fault":
            raise ZeroDivisionError("nothing to share among")
        case "":
            pass
        case _:
            raise getattr(errors, kind)("score()", "`action`", expected="[B=32]", got="[32, 1]")


@pytest.fixture
def work(tmp_path: Path) -> Draw:
    (tmp_path / "calls").mkdir()
    return Draw(tmp_path / "calls")


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "run", FINGERPRINT)


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    assert not workers_of(os.getpid())


def calls(work: Draw) -> list[str]:
    """Return the key of every call so far, and forget them."""
    paths = list(work.calls.iterdir())
    keys = [path.read_text() for path in paths]
    for path in paths:
        path.unlink()
    return sorted(keys)


def table(store: CellStore, keys: tuple[str, ...] = KEYS) -> str:
    """Return all rows as text, in which NaN equals itself."""
    return repr([store.read(key).rows for key in keys])


def processes() -> dict[int, tuple[int, str]]:
    """Return ``pid -> (parent, command line)`` of every living process."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if entry.name.isdigit() and fields[0] != "Z":
                found[int(entry.name)] = (
                    int(fields[1]),
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(),
                )
        except OSError:
            continue  # it has just ended
    return found


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a process; loky's tracker of resources ends with it."""
    return [child for child, (parent, line) in processes().items() if parent == pid and "popen_loky" in line + "\0"]


def session(leader: int) -> list[int]:
    """Return every living process of a session."""
    found = []
    for pid in processes():
        with suppress(ProcessLookupError):  # it has just ended
            found += [pid] if os.getsid(pid) == leader else []
    return found


def ends(pids: list[int], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if pid in processes()]:
        if time.monotonic() > deadline:
            return not alive
        time.sleep(0.05)
    return True


def test_only_missing_cells_are_run(store: CellStore, work: Draw) -> None:
    heard: list[str] = []
    run_cells(KEYS[:4], work, store, advance=heard.append)
    assert calls(work) == sorted(KEYS[:4])
    run_cells(KEYS, work, store, advance=heard.append)
    assert calls(work) == sorted(KEYS[4:])
    assert heard == list(KEYS)
    run_cells(KEYS, work, store, num_workers=2, advance=heard.append)
    assert calls(work) == [] and len(heard) == len(KEYS)


def test_rows_depend_neither_on_workers_nor_on_order(store: CellStore, work: Draw, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_cells(KEYS, work, store)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    apart = CellStore(tmp_path / "apart", FINGERPRINT)
    heard: list[str] = []
    run_cells(KEYS[::-1], work, apart, num_workers=2, advance=heard.append)
    assert sorted(heard) == sorted(KEYS)
    assert table(apart) == table(store)
    assert all(store.read(key).rows[0]["threads"] == 1 for key in KEYS)
    assert {file.name for file in apart.cells.iterdir()} == {store.path(key).name for key in KEYS}


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_is_as_uninterrupted(
    store: CellStore, work: Draw, tmp_path: Path, num_workers: int
) -> None:
    whole = CellStore(tmp_path / "whole", FINGERPRINT)
    run_cells(KEYS, work, whole)
    calls(work)
    done: list[str] = []

    def interrupt(key: str) -> None:
        done.append(key)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(KEYS, work, store, num_workers=num_workers, advance=interrupt)
    assert store.finished() == set(done) and len(done) == 3
    calls(work)
    run_cells(KEYS, work, store)
    assert calls(work) == sorted(set(KEYS) - set(done))
    assert table(store) == table(whole)


def test_a_damaged_cell_is_said_and_run_again(store: CellStore, work: Draw) -> None:
    run_cells(KEYS, work, store)
    expected = table(store)
    calls(work)
    os.truncate(store.path(KEYS[3]), 40)
    with pytest.warns(UserWarning, match=f"{store.path(KEYS[3]).name} is damaged .*counts as missing"):
        run_cells(KEYS, work, store)
    assert calls(work) == [KEYS[3]]
    store.path(KEYS[0]).write_bytes(b"")
    said: list[str] = []
    run_cells(KEYS, work, store, say=said.append)
    assert calls(work) == [KEYS[0]] and len(said) == 1
    assert table(store) == expected


def test_a_folder_of_another_study_is_refused_before_anything_runs(store: CellStore, work: Draw) -> None:
    run_cells(KEYS[:1], work, store)
    calls(work)
    with pytest.raises(StudyError, match="belongs to another study"):
        run_cells(KEYS, work, CellStore(store.folder, fingerprint_of({"study": "other"})))
    assert calls(work) == []


def families() -> list[str]:
    return [
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, LatentPGError)
    ]


@pytest.mark.parametrize("family", families())
def test_an_error_of_the_library_arrives_as_itself_with_its_cell(store: CellStore, work: Draw, family: str) -> None:
    with pytest.raises(LatentPGError) as caught:
        run_cells(KEYS, Draw(work.calls, family), store)
    assert type(caught.value) is getattr(errors, family)
    assert str(caught.value).splitlines() == [
        f"{family} in score(): `action`",
        "  expected: [B=32]",
        "  got:      [32, 1]",
        f"  cell:     {KEYS[5]}",
    ]
    assert "in make_trouble" in caught.value.__notes__[0]
    assert store.finished() == set(KEYS[:5])


@pytest.mark.parametrize(("trouble", "got"), [("fault", "ZeroDivisionError: nothing"), ("exit", "SystemExit: 3")])
def test_any_other_exception_is_named_with_its_cell(store: CellStore, work: Draw, trouble: str, got: str) -> None:
    with pytest.raises(StudyError, match=f"cell '{KEYS[5]}' failed") as caught:
        run_cells(KEYS, Draw(work.calls, trouble), store)
    assert got in str(caught.value)
    assert f"{__file__}:" in str(caught.value) and "in make_trouble" in str(caught.value)
    assert store.finished() == set(KEYS[:5])


def test_rows_that_no_table_holds_are_named_with_their_cell(store: CellStore) -> None:
    def tensors(key: str) -> list[Row]:
        return [{"value": torch.ones(())}]  # type: ignore[dict-item]

    with pytest.raises(StudyError, match="the value of `value`") as caught:
        run_cells(KEYS, tensors, store)
    assert f"cell:     {KEYS[0]}" in str(caught.value)


@pytest.mark.parametrize(
    ("trouble", "family"), [("ShapeError", errors.ShapeError), pytest.param("kill", StudyError, marks=pytest.mark.slow)]
)
def test_a_worker_that_raises_or_is_killed(
    store: CellStore, work: Draw, tmp_path: Path, trouble: str, family: type[LatentPGError]
) -> None:
    """The cell is named, what was finished stays, no process is left, and the next run takes up the rest."""
    with pytest.raises(family) as caught:
        run_cells(KEYS, Draw(work.calls, trouble, seconds=0.01), store, num_workers=2)
    assert KEYS[5] in str(caught.value)
    assert trouble != "kill" or ("was killed" in str(caught.value) and "SIGKILL" in str(caught.value))
    assert not workers_of(os.getpid())
    done = store.finished()
    assert KEYS[5] not in done and len(done) >= 3
    calls(work)
    run_cells(KEYS, work, store)
    assert calls(work) == sorted(set(KEYS) - done)
    whole = CellStore(tmp_path / "whole", FINGERPRINT)
    run_cells(KEYS, work, whole)
    assert table(store) == table(whole)


def test_work_that_cannot_be_sent_is_named(store: CellStore, work: Draw) -> None:
    lock = threading.Lock()

    def holds_a_lock(key: str) -> list[Row]:
        with lock:
            return work(key)

    with pytest.raises(StudyError, match="pickle"):
        run_cells(KEYS, holds_a_lock, store, num_workers=2)
    run_cells(KEYS, holds_a_lock, store, num_workers=2, backend="serial")
    assert store.finished() == set(KEYS)


@pytest.mark.production
@pytest.mark.parametrize("num_workers", [0, -1, True, 1.5])
def test_a_number_of_workers_that_cannot_be_is_refused(store: CellStore, work: Draw, num_workers: int) -> None:
    with pytest.raises(OptionError, match="num_workers"):
        run_cells(KEYS, work, store, num_workers=num_workers)


@pytest.mark.production
def test_an_unknown_backend_is_refused_with_its_nearest(store: CellStore, work: Draw) -> None:
    with pytest.raises(OptionError, match="did you mean process"):
        run_cells(KEYS, work, store, backend="proces")  # type: ignore[arg-type]


def test_a_key_that_is_there_twice_is_refused(store: CellStore, work: Draw) -> None:
    with pytest.raises(StudyError, match=f"'{KEYS[1]}' twice"):
        run_cells([*KEYS, KEYS[1]], work, store)


def test_ray_that_is_not_installed_is_named_with_its_extra(
    store: CellStore, work: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'latentpg\[ray\]'"):
        run_cells(KEYS, work, store, num_workers=2, backend="ray")
    assert calls(work) == []


# In a process of its own, which is stopped from outside.

SCRIPT = """
import sys
from pathlib import Path
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore
from tests.studies.test_execute import FINGERPRINT, KEYS, Draw

if __name__ == "__main__":
    store, work = CellStore(Path(sys.argv[1]), FINGERPRINT), Draw(Path(sys.argv[2]), seconds=float(sys.argv[3]))
    try:
        run_cells(KEYS, work, store, num_workers=2, advance=lambda key: print(key, flush=True))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGINT", "SIGTERM", "SIGKILL"])
def test_a_parent_that_is_stopped_leaves_no_process_and_loses_no_finished_cell(
    store: CellStore, work: Draw, tmp_path: Path, how: str
) -> None:
    """Ctrl-C reaches all processes of a terminal at once; the others the parent alone."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store.folder), str(work.calls), "0.3"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    heard = [parent.stdout.readline().strip() for _ in range(3)]
    group = session(parent.pid)
    assert len(workers_of(parent.pid)) == 2
    number = signal.SIGINT if how == "Ctrl-C" else signal.Signals[how]
    (os.killpg if how == "Ctrl-C" else os.kill)(parent.pid, number)
    out, err = parent.communicate(timeout=30)
    assert ends(group), "processes are left"
    if number is signal.SIGINT:
        assert parent.returncode == 130 and out.splitlines()[-1] == "interrupted"
        assert "Traceback" not in err and "Warning" not in err, err
    else:
        assert parent.returncode == -number
    done = store.finished()
    assert set(heard) <= done < set(KEYS)
    calls(work)
    run_cells(KEYS, work, store)
    assert calls(work) == sorted(set(KEYS) - done)
    whole = CellStore(tmp_path / "whole", FINGERPRINT)
    run_cells(KEYS, work, whole)
    assert table(store) == table(whole)


def wide(key: str) -> list[Row]:
    """Return rows that take about 100 kB in memory, in the time that two workers leave a slow disk for each."""
    time.sleep(0.04)
    return [{"cell": key, "index": index, "value": index / 7} for index in range(400)]


@pytest.mark.slow
def test_a_thousand_cells_take_seconds_and_the_parent_keeps_none_of_them(store: CellStore) -> None:
    keys = [f"cell {index}" for index in range(1000)]
    held: list[int] = []
    page = os.sysconf("SC_PAGE_SIZE")
    start = time.process_time()  # which busy neighbours, and a disk that is slow to flush, do not stretch

    def advance(key: str) -> None:
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    run_cells(keys, wide, store, num_workers=2, advance=advance)
    assert time.process_time() - start < 8
    assert max(held) - held[100] < 20e6, "all rows together would take 100 MB"
    assert store.finished() == set(keys)
    assert store.read(keys[0]) == StoredCell(FINGERPRINT, keys[0], tuple(wide(keys[0])), store.read(keys[0]).seconds)


@pytest.mark.slow
def test_ray_gives_the_same_rows(store: CellStore, work: Draw, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    script = SCRIPT.replace("num_workers=2", 'num_workers=2, backend="ray"')
    command = [sys.executable, "-c", script, str(store.folder), str(work.calls), "0.1"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    assert sorted(told.stdout.split("\n")[:-1]) == sorted(KEYS)
    assert calls(work) == sorted(KEYS)
    here = CellStore(tmp_path / "here", FINGERPRINT)
    run_cells(KEYS, work, here)
    assert table(store) == table(here)
