"""Checkpoints come back bit for bit, survive what kills a run, and are read as if an enemy had written them."""

import errno
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor

from latentpg.errors import CheckpointError, DamagedCheckpointError
from latentpg.runs import (
    list_checkpoints,
    load_checkpoint,
    loading,
    name_checkpoint,
    named_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from latentpg.runs.manifest import FACTS, MANIFEST, MAX_FACTS, TENSORS, Manifest, encode_manifest, entry_of
from latentpg.runs.tensors import DTYPES, MAX_HEADER, MAX_TENSORS, encode_tensors
from latentpg.runs.untrusted import digest_of
from latentpg.runs.upkeep import name_of

SEED = 20_240_607
FILES = (TENSORS, FACTS, MANIFEST)


# Helpers


def state_of(step: int, *, size: int = 40) -> dict[str, Tensor]:
    """Make a state that only this step has, of every type."""
    generator = torch.Generator().manual_seed(step)
    numbers = torch.randn(size, generator=generator, dtype=torch.float64)
    state = {f"part.{name}": (100 * numbers).to(dtype) for name, dtype in DTYPES.items() if name != "BOOL"}
    return state | {"truth": numbers > 0, "step": torch.tensor(step), "none": torch.zeros(3, 0, 2)}


def facts_of(step: int) -> dict[str, Any]:
    return {"algo": "ppo", "step": step, "sizes": [64, 64], "note": "größer ✓"}


def save(folder: Path, step: int, *, keep: int = 3, protect: Collection[str] = ()) -> Path:
    return save_checkpoint(folder, state_of(step), facts_of(step), step=step, keep=keep, protect=protect)


def bits(value: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return value.dtype, value.shape, bytes(value.contiguous().flatten().view(torch.uint8).tolist())


def assert_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    differ = [name for name in expected if bits(state[name]) != bits(expected[name])]
    assert not differ


def is_whole(folder: Path, step: int) -> bool:
    checkpoint = load_checkpoint(folder / name_of(step))
    assert_same(checkpoint.state, state_of(step))
    return (checkpoint.step, checkpoint.facts) == (step, facts_of(step))


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def in_child(action: Callable[[], object]) -> str:
    """Do something in a forked process, and tell how that ended: what was raised, or ``ok``, or ``killed``."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(told)
            outcome = "ok"
            try:
                action()
            except BaseException as error:
                outcome = f"{type(error).__name__} | {error}"
            os.write(tell, outcome.encode()[:4000])
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else text


# Round trips


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, -0.0, 3.7, 100.0]).to(dtype)
    state = {
        "vector": values,
        "scalar": values[3],
        "empty": values[:0],
        "empty matrix": torch.zeros(4, 0, dtype=dtype),
        "column": values[:, None],
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, state, {}, step=0))
    assert_same(loaded.state, state)


def test_extreme_numbers_and_the_bits_of_nan_are_kept(tmp_path: Path) -> None:
    nans = torch.tensor([0x7FF8000000000123, -1, 0x7FF0000000000001, 0x7FF0000000000000]).view(torch.float64)
    state = {"nan": nans, "integers": torch.tensor([2**63 - 1, -(2**63)]), "tiny": torch.tensor([5e-324]).double()}
    loaded = load_checkpoint(save_checkpoint(tmp_path, state, {}, step=10**18))
    assert_same(loaded.state, state)
    assert loaded.step == 10**18
    assert loaded.state["nan"].isnan().tolist() == [True, True, True, False]


def test_views_become_tensors_of_their_own(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    imaginary = torch.tensor([1 + 2j]).conj().imag  # its sign is a flag, not in its bytes
    state = {"weight": weight, "tied": weight, "transposed": weight.T, "row": weight[1], "imaginary": imaginary}
    loaded = load_checkpoint(save_checkpoint(tmp_path, state, {}, step=1)).state
    assert loaded["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert loaded["row"].tolist() == [3, 4, 5]
    assert loaded["imaginary"].tolist() == [-2.0]
    assert torch.equal(loaded["tied"], weight.detach())
    assert not loaded["weight"].requires_grad


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "text": "größer \n\x7f",
        "none": None,
        "yes": True,
        "integer": 2**70,
        "tenth": 0.1,
        "tiny": 5e-324,
        "worst": -math.inf,
        "best": math.inf,
        "nested": [{"a": [1, 2.5, []]}, {}],
    }
    loaded = dict(load_checkpoint(save_checkpoint(tmp_path, {}, {**facts, "nan": math.nan}, step=1)).facts)
    assert math.isnan(loaded.pop("nan"))
    assert loaded == facts
    assert [type(value) for value in loaded.values()] == [type(value) for value in facts.values()]


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert sorted(path.name for path in first.iterdir()) == sorted(FILES)
    assert [(first / name).read_bytes() for name in FILES] == [(second / name).read_bytes() for name in FILES]


# A checkpoint as version 1 of the format wrote it; every later version must read it.
VERSION_1 = {
    TENSORS: b'x\0\0\0\0\0\0\0{"weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"done":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}     \0\0\xc0?\0\0\0\xc0\x01',
    FACTS: b'{\n "format_version": 1,\n "facts": {\n  "algo": "ppo",\n  "best": "-inf"\n }\n}\n',
    MANIFEST: b'{\n "format_version": 1,\n "step": 7,\n "files": {\n  "facts.json": {\n   "bytes": 75,\n'
    b'   "sha256": "426de1ce62ec1dd557caae8517a9e85d19a661f9d0e5c1857941d59f24b681af"\n  },\n'
    b'  "tensors.safetensors": {\n   "bytes": 137,\n'
    b'   "sha256": "187f996a62c9d4a9a82577553ae86db88a2339ae9d7b2fa3ab86c165a7a3fcf7"\n  }\n },\n'
    b' "digest": "2fcf0b49b35f69cf170bcd725cc2275d6c6609136829089b7574bc0d099a53ac"\n}\n',
}


def test_what_version_1_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / name_of(7)
    path.mkdir()
    for name, content in VERSION_1.items():
        (path / name).write_bytes(content)
    loaded = newest_checkpoint(tmp_path, say=pytest.fail)
    assert_same(loaded.state, {"weight": torch.tensor([1.5, -2.0]), "done": torch.tensor(True)})
    assert (loaded.facts, loaded.step) == ({"algo": "ppo", "best": -math.inf}, 7)


# What cannot be saved


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "`state`.*\n.*tensors by name\n.*list"),
        ({"a": 1.0}, r"`state\['a'\]`(.|\n)*got: +float(.|\n)*facts"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "torch.complex64"),
        ({"a": torch.eye(2).to_sparse()}, "torch.sparse_coo"),
        ({"a": torch.zeros(2, device="meta")}, "a dense tensor"),
        ({"": torch.zeros(1)}, "the name of a tensor"),
        ({"__metadata__": torch.zeros(1)}, "the name of a tensor"),
        ({"a\nb": torch.zeros(1)}, "the name of a tensor"),
        ({"ü" * 101: torch.zeros(1)}, "200 bytes"),
        ({"\ud800": torch.zeros(1)}, "the name of a tensor"),
        ({str(i): torch.zeros(0) for i in range(MAX_TENSORS + 1)}, f"{MAX_TENSORS + 1}"),
    ],
)
@pytest.mark.production
def test_a_state_that_would_not_come_back_is_refused(
    tmp_path: Path,
    state: Any,  # noqa: ANN401 (wrong on purpose)
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, state, {}, step=1)
    assert not list_checkpoints(tmp_path)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth - 1):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([1], "`facts`.*\n.*a mapping"),
        ({"a": torch.zeros(1)}, r"`facts\['a'\]`(.|\n)*Tensor(.|\n)*state"),
        ({"a": [0, {"b": {1}}]}, r"`facts\['a'\]\[1\]\['b'\]`(.|\n)*set"),
        ({"a": {1: 2}}, r"`facts\['a'\]`"),
        ({"a": "nan"}, "other than nan"),
        ({"a": "\ud800"}, "str"),
        ({"a": 10**5000}, "too many digits"),
        ({"a": nested(32)}, "nested at most 32 deep"),
        ({"a": "x" * MAX_FACTS}, f"<= {MAX_FACTS} bytes"),
        ({"a": [[]] * 20_000}, "<= 20000 brackets"),
    ],
)
@pytest.mark.production
def test_facts_that_would_not_come_back_are_refused(
    tmp_path: Path,
    facts: Any,  # noqa: ANN401 (wrong on purpose)
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, {}, facts, step=1)
    assert not list_checkpoints(tmp_path)


def test_facts_of_the_greatest_depth_come_back(tmp_path: Path) -> None:
    facts = {"a": nested(31)}
    assert load_checkpoint(save_checkpoint(tmp_path, {}, facts, step=1)).facts == facts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, "`step`"),
        ({"step": True}, "`step`"),
        ({"step": 10**18 + 1}, "`step`"),
        ({"step": 1, "keep": 0}, "`keep`"),
        ({"step": 1, "protect": "best"}, "`protect`(.|\n)*name_checkpoint"),
        ({"step": 1, "protect": ["../x"]}, "`protect`"),
        ({"step": 1, "max_bytes": 100}, "`state`(.|\n)*<= 100 bytes(.|\n)*max_bytes="),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, {"a": torch.zeros(100)}, {}, **options)
    assert not list_checkpoints(tmp_path)


# Which are there, which is taken, which stay


def test_the_newest_is_taken(tmp_path: Path) -> None:
    for step in (5, 40, 300):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == [name_of(step) for step in (5, 40, 300)]
    said: list[str] = []
    assert newest_checkpoint(tmp_path, say=said.append).step == 300
    assert said == []


def test_order_is_by_number_also_beyond_ten_digits(tmp_path: Path) -> None:
    for step in (99, 10**10, 10**11):
        save(tmp_path, step)
    assert steps(tmp_path) == [99, 10**10, 10**11]


def test_what_is_not_named_as_a_checkpoint_is_none(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for name in ("step-7", "step-00000000007", "step-000000000x", ".step-0000000009.tmp", "step-٠٠٠٠٠٠٠٠٠٩"):
        shutil.copytree(tmp_path / name_of(5), tmp_path / name)
    (tmp_path / name_of(11)).write_text("a file")
    (tmp_path / name_of(12)).symlink_to(tmp_path / name_of(5), target_is_directory=True)
    assert steps(tmp_path) == [5]


def test_no_checkpoint_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == ()
    with pytest.raises(CheckpointError, match=r"holds no whole checkpoint(.|\n)*got: +none"):
        newest_checkpoint(tmp_path, say=print)
    save(tmp_path, 5)
    (tmp_path / name_of(5) / FACTS).unlink()
    said: list[str] = []
    with pytest.raises(CheckpointError, match="1 damaged"):
        newest_checkpoint(tmp_path, say=said.append)
    assert len(said) == 1


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    assert steps(tmp_path) == [5, 6, 7]
    save(tmp_path, 8, keep=1)
    assert steps(tmp_path) == [8]


def test_what_is_protected_or_named_stays(tmp_path: Path) -> None:
    name_checkpoint(save(tmp_path, 1), "best")
    save(tmp_path, 2)
    for step in (3, 4, 5):
        save(tmp_path, step, keep=1, protect={name_of(2)})
    assert steps(tmp_path) == [1, 2, 5]
    assert named_checkpoint(tmp_path, "best").step == 1
    name_checkpoint(tmp_path / name_of(5), "best")
    save(tmp_path, 6, keep=1)
    assert steps(tmp_path) == [5, 6]
    assert_same(named_checkpoint(tmp_path, "best").state, state_of(5))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"format_version": 1, "checkpoint": "../../etc"}',
        b'{"format_version": 1, "checkpoint": "/etc"}',
        b'{"format_version": 1, "checkpoint": 3}',
        b'{"format_version": 2, "checkpoint": "step-0000000001"}',
        b'{"format_version": 1, "checkpoint": "step-0000000001"}' + b" " * 5000,
    ],
)
def test_a_slot_that_tells_nothing_is_refused_and_nothing_is_removed(tmp_path: Path, content: bytes) -> None:
    name_checkpoint(save(tmp_path, 1), "best")
    (tmp_path / "best.json").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"best\.json"):
        named_checkpoint(tmp_path, "best")
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert steps(tmp_path) == [1, 2, 3]


def test_a_slot_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    name_checkpoint(save(tmp_path / "a", 1), "best")
    save(tmp_path / "b", 1)
    (tmp_path / "b" / "best.json").symlink_to(tmp_path / "a" / "best.json")
    with pytest.raises(DamagedCheckpointError, match="symbolic link"):
        named_checkpoint(tmp_path / "b", "best")


@pytest.mark.parametrize("slot", ["", "Best", "../best", "a/b", "step-0000000001", "x" * 33, ".best"])
def test_a_slot_has_a_plain_name(tmp_path: Path, slot: str) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="its name"):
        name_checkpoint(path, slot)
    with pytest.raises(CheckpointError, match="its name"):
        named_checkpoint(tmp_path, slot)


def test_only_a_whole_checkpoint_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / "copy")
    with pytest.raises(CheckpointError, match=r"save_checkpoint\(\) returned"):
        name_checkpoint(tmp_path / "copy", "best")
    (path / FACTS).unlink()
    with pytest.raises(DamagedCheckpointError, match=FACTS):
        name_checkpoint(path, "best")
    assert not (tmp_path / "best.json").exists()


def test_a_named_one_that_is_damaged_is_not_replaced_by_another(tmp_path: Path) -> None:
    name_checkpoint(save(tmp_path, 1), "best")
    save(tmp_path, 2)
    (tmp_path / name_of(1) / TENSORS).unlink()
    with pytest.raises(DamagedCheckpointError, match=name_of(1)):
        named_checkpoint(tmp_path, "best")


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    first = save(tmp_path, 5)
    before = os.stat(first / MANIFEST).st_mtime_ns
    assert save(tmp_path, 5) == first
    assert os.stat(first / MANIFEST).st_mtime_ns == before
    with pytest.raises(CheckpointError, match="there already, with another content"):
        save_checkpoint(tmp_path, state_of(6), facts_of(5), step=5)
    with pytest.raises(CheckpointError, match="there already, with another content"):
        save_checkpoint(tmp_path, state_of(5), facts_of(6), step=5)
    assert is_whole(tmp_path, 5)


def test_a_save_before_a_later_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match="step 4 comes before"):
        save(tmp_path, 4)
    assert steps(tmp_path) == [5]


def test_after_going_back_the_run_goes_on_past_the_damaged_one(tmp_path: Path) -> None:
    for step in (1, 2, 4):
        save(tmp_path, step)
    (tmp_path / name_of(4) / TENSORS).write_bytes(b"")
    save(tmp_path, 3, keep=2)
    assert steps(tmp_path) == [2, 3, 4]  # what is damaged and later neither counts as kept nor is removed
    save(tmp_path, 4, keep=2)
    assert steps(tmp_path) == [3, 4]
    assert is_whole(tmp_path, 4)


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    save(tmp_path, 1)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process is writing"):
            save(tmp_path, 2)
    finally:
        os.close(handle)
    assert steps(tmp_path) == [1]
    save(tmp_path, 2)


def test_leftovers_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    shutil.copytree(folder / name_of(1), folder / ".step-0000000002.tmp")
    shutil.copytree(folder / name_of(1), folder / ".step-0000000000.old.tmp")
    (folder / ".step-0000000003.tmp").symlink_to(elsewhere, target_is_directory=True)
    (folder / ".best.json.ab_c12.tmp").write_text("{")
    (folder / ".metrics.csv.tmp").write_text("another's")
    (folder / "notes").write_text("the user's")
    save(folder, 2)
    assert temporaries(folder) == [".metrics.csv.tmp"]
    assert (folder / "notes").read_text() == "the user's"
    assert (elsewhere / "mine").read_text() == "mine"


def test_retention_removes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    folder = tmp_path / "checkpoints"
    (save(folder, 1) / "link").symlink_to(tmp_path / "mine", target_is_directory=True)
    save(folder, 2, keep=1)
    assert steps(folder) == [2]
    assert (tmp_path / "mine" / "file").read_text() == "mine"


# Faults while writing

MUTATING = ("mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir", "open")


@contextmanager
def watched(see: Callable[[str, str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call ``see(when, what, arguments)`` before and after every call of the system that changes the disk."""
    originals = {name: getattr(os, name) for name in MUTATING}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 (as the function it stands for)
            changes = name != "open" or bool(arguments[1] & os.O_CREAT)
            if changes:
                see("before", name, arguments)
            result = originals[name](*arguments, **options)
            if changes:
                see("after", name, arguments)
            return result

        return call

    try:
        for name in MUTATING:
            setattr(os, name, wrapped(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def boundaries_of(action: Callable[[], object]) -> list[str]:
    seen: list[str] = []
    with watched(lambda when, name, arguments: seen.append(f"{when} {name}")):
        action()
    return seen


def killed_at(boundary: int) -> Callable[[str, str, tuple[Any, ...]], None]:
    count = iter(range(10**6))

    def see(when: str, name: str, arguments: tuple[Any, ...]) -> None:
        if next(count) == boundary:
            if name == "write" and when == "before":  # half of what was to be written
                handle, content = arguments
                os.truncate(handle, os.writev(handle, [bytes(content[: len(content) // 2])]))
            os.kill(os.getpid(), signal.SIGKILL)

    return see


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for step in (1, 2, 3):
        save(folder, step)
    return folder


def test_a_kill_at_any_boundary_loses_nothing(tmp_path: Path, three_checkpoints: Path) -> None:
    probe = tmp_path / "probe"
    shutil.copytree(three_checkpoints, probe)
    boundaries = boundaries_of(lambda: save(probe, 4))
    assert steps(probe) == [2, 3, 4]  # it removes one, so that the boundaries of that are among them
    assert {"before rename", "after rename", "before unlink", "before rmdir", "before write"} <= set(boundaries)
    assert len(boundaries) >= 30

    for number, boundary in enumerate(boundaries):
        folder = tmp_path / f"{number}"
        shutil.copytree(three_checkpoints, folder)

        def interrupted(folder: Path = folder, number: int = number) -> None:
            with watched(killed_at(number)):
                save(folder, 4)

        assert in_child(interrupted) == "killed", boundary
        left = steps(folder)
        assert left in ([1, 2, 3], [1, 2, 3, 4], [2, 3, 4]), boundary
        assert all(is_whole(folder, step) for step in left), boundary
        said: list[str] = []
        assert newest_checkpoint(folder, say=said.append).step == left[-1]
        assert not said, boundary
        assert len(temporaries(folder)) <= 1, boundary
        save(folder, 5)
        assert temporaries(folder) == [], boundary
        assert is_whole(folder, 5)


def test_a_kill_while_a_slot_is_set_leaves_the_old_meaning_or_the_new(tmp_path: Path, three_checkpoints: Path) -> None:
    probe = tmp_path / "probe"
    shutil.copytree(three_checkpoints, probe)
    name_checkpoint(probe / name_of(1), "best")
    boundaries = boundaries_of(lambda: name_checkpoint(probe / name_of(3), "best"))
    assert len(boundaries) >= 6
    for number in range(len(boundaries)):
        folder = tmp_path / f"{number}"
        shutil.copytree(three_checkpoints, folder)
        name_checkpoint(folder / name_of(1), "best")

        def interrupted(folder: Path = folder, number: int = number) -> None:
            with watched(killed_at(number)):
                name_checkpoint(folder / name_of(3), "best")

        assert in_child(interrupted) == "killed"
        assert named_checkpoint(folder, "best").step in (1, 3)
        assert len(temporaries(folder)) <= 1
        save(folder, 4)
        assert temporaries(folder) == []


def test_everything_is_on_the_disk_before_it_gets_its_name_and_before_anything_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    events: list[str] = []

    def see(when: str, name: str, arguments: tuple[Any, ...]) -> None:
        if when == "after":
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name in ("fsync", "write") else str(arguments[-1])
            events.append(f"{name} {Path(target).name}")

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file a handle is")
    with watched(see):
        save(tmp_path, 2, keep=1)
    renamed = events.index(f"rename {name_of(2)}")
    before, after = events[:renamed], events[renamed:]
    for name in FILES:
        assert before.index(f"fsync {name}") > before.index(f"write {name}")
    assert f"fsync .{name_of(2)}.tmp" == before[-1]
    assert after[1] == f"fsync {tmp_path.name}"
    assert after[2] == f"rename .{name_of(1)}.old.tmp"


def test_a_new_folder_is_on_the_disk_too(tmp_path: Path) -> None:
    synced: list[int] = []

    def see(when: str, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync" and when == "after":
            synced.append(os.fstat(arguments[0]).st_ino)

    with watched(see):
        save(tmp_path / "run" / "checkpoints", 1)
    assert {tmp_path.stat().st_ino, (tmp_path / "run").stat().st_ino} <= set(synced)


def test_what_does_not_read_back_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps something else than it was given."""
    save(tmp_path, 1)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, content: write(handle, bytes(content).replace(b"ppo", b"pqo")))
        with pytest.raises(CheckpointError, match="does not read back as it was written"):
            save(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [1]
    assert temporaries(tmp_path) == []
    assert is_whole(tmp_path, 1)


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:7]))
    save(tmp_path, 1)
    assert is_whole(tmp_path, 1)


def test_a_file_size_limit_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        save(tmp_path, 2, keep=1)

    assert "CheckpointError | CheckpointError in save_checkpoint()" in (told := in_child(limited))
    assert "File too large" in told
    assert (steps(tmp_path), temporaries(tmp_path)) == ([1], [])
    assert is_whole(tmp_path, 1)


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.EDQUOT), ("mkdir", errno.EROFS)],
)
def test_a_failing_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A full disk, a broken one, a quota, a read-only file system."""
    save(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError, match=f"cannot be written(.|\n)*{os.strerror(number)}(.|\n)*earlier"):
            save(tmp_path, 2, keep=1)
    assert (steps(tmp_path), temporaries(tmp_path)) == ([1], [])
    assert is_whole(tmp_path, 1)


def test_an_older_one_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        with pytest.raises(CheckpointError, match=f"{name_of(2)} is saved, but an older(.|\n)*busy"):
            save(tmp_path, 2, keep=1)
    assert is_whole(tmp_path, 2)
    assert len(temporaries(tmp_path)) == 1
    save(tmp_path, 3, keep=1)
    assert (steps(tmp_path), temporaries(tmp_path)) == ([3], [])


def test_an_interrupted_save_clears_up_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert (steps(tmp_path), temporaries(tmp_path)) == ([1], [])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user of the machine can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


def as_nobody(action: Callable[[], object]) -> Callable[[], object]:
    """Do it as a user without rights: root may write everywhere."""

    def done() -> object:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        return action()

    return done


def test_a_folder_without_permission_to_write_is_told(open_folder: Path) -> None:
    save(open_folder, 1)
    open_folder.chmod(0o555)
    told = in_child(as_nobody(lambda: save(open_folder, 2, keep=1)))
    open_folder.chmod(0o755)
    assert told.startswith("CheckpointError | CheckpointError in save_checkpoint()")
    assert f"{name_of(2)} cannot be written" in told
    assert "Permission denied" in told
    assert (steps(open_folder), temporaries(open_folder)) == ([1], [])
    assert is_whole(open_folder, 1)


def test_no_permission_to_read_is_no_damage(open_folder: Path) -> None:
    """To go back would lose the newest, which is whole."""
    save(open_folder, 1)
    save(open_folder, 2)
    (open_folder / name_of(2) / TENSORS).chmod(0)
    said: list[str] = []
    told = in_child(as_nobody(lambda: newest_checkpoint(open_folder, say=said.append)))
    assert told.startswith("CheckpointError | CheckpointError in load_checkpoint()")
    assert "Permission denied" in told


def save_forever(folder: Path, tell: int) -> None:
    for step in range(10**6):
        save(folder, step)
        os.write(tell, step.to_bytes(4, "big"))


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Sixty kills, each between 5 and 150 ms after the start: what was told to be saved is there."""
    chance = random.Random(SEED)
    interrupted = 0
    for number in range(60):
        folder = tmp_path / f"{number}"
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            try:
                save_forever(folder, tell)
            finally:
                os._exit(1)
        os.close(tell)
        time.sleep(chance.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(told, "rb") as stream:
            acknowledged = stream.read()
        last = int.from_bytes(acknowledged[-4:], "big") if acknowledged else -1
        left = steps(folder)
        assert all(is_whole(folder, step) for step in left)
        assert (left[-1] if left else -1) in (last, last + 1)
        assert len(left) >= min(3, last + 1)
        leftovers = temporaries(folder) if folder.is_dir() else []
        interrupted += len(leftovers)
        assert len(leftovers) <= 1
        save(folder, 10**6)
        assert temporaries(folder) == []
    assert interrupted >= 10  # the kills did hit saves


# Damage


def falls_back(folder: Path) -> list[str]:
    said: list[str] = []
    checkpoint = newest_checkpoint(folder, say=said.append)
    assert checkpoint.step == 1
    assert_same(checkpoint.state, state_of(1))
    return said


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_detected(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save_checkpoint(tmp_path, state_of(2, size=500), facts_of(2), step=2) / name
    whole = path.read_bytes()
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        assert [name in line for line in falls_back(tmp_path)] == [True], percent
    path.unlink()
    assert "No such file" in falls_back(tmp_path)[0]
    path.write_bytes(whole + b"\n")
    assert [name in line for line in falls_back(tmp_path)] == [True]
    path.write_bytes(whole)
    assert newest_checkpoint(tmp_path, say=pytest.fail).step == 2


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_detected(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save_checkpoint(tmp_path, state_of(2, size=500), facts_of(2), step=2) / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 97 if name == TENSORS else 1):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        (line,) = falls_back(tmp_path)
        assert name_of(2) in line
        assert "DamagedCheckpointError" in line
    path.write_bytes(whole)
    assert newest_checkpoint(tmp_path, say=pytest.fail).step == 2


def test_a_checkpoint_under_another_steps_name_is_detected(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / name_of(1), tmp_path / name_of(2))
    assert "it is of step 1" in falls_back(tmp_path)[0]
    shutil.copytree(tmp_path / name_of(1), tmp_path / "my-policy")
    assert load_checkpoint(tmp_path / "my-policy").step == 1


def test_it_goes_back_as_far_as_it_must_and_says_each(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / name_of(3) / MANIFEST).unlink()
    shutil.rmtree(tmp_path / name_of(2))
    (tmp_path / name_of(2)).mkdir()
    assert [name_of(3) in falls_back(tmp_path)[0], name_of(2) in falls_back(tmp_path)[1]] == [True, True]


def test_another_version_is_told_and_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    forge(tmp_path / name_of(2), step=2, version=2)
    with pytest.raises(CheckpointError, match=r"format_version 1(.|\n)*got: +format_version 2") as told:
        newest_checkpoint(tmp_path, say=pytest.fail)
    assert not isinstance(told.value, DamagedCheckpointError)


# Hostile files


def tensors_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), place: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


def digested(body: dict[str, Any]) -> bytes:
    """Write a manifest of any body whose digest is right, as an enemy would."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({**body, "digest": entry_of(text.encode()).sha256}, indent=1).encode() + b"\n"


def forge(
    path: Path,
    *,
    tensors: bytes | None = None,
    facts: bytes = b'{"format_version": 1, "facts": {}}',
    step: object = 1,
    version: object = 1,
    files: Callable[[dict[str, Any]], Any] = lambda files: files,
) -> Path:
    """Write a checkpoint in which every digest is right, whatever it holds."""
    tensors = encode_tensors({"a": torch.zeros(2)}) if tensors is None else tensors
    path.mkdir(parents=True)
    (path / TENSORS).write_bytes(tensors)
    (path / FACTS).write_bytes(facts)
    entries = {name: entry_of(content) for name, content in ((FACTS, facts), (TENSORS, tensors))}
    body = {
        "format_version": version,
        "step": step,
        "files": files({name: {"bytes": entry.size, "sha256": entry.sha256} for name, entry in entries.items()}),
    }
    (path / MANIFEST).write_bytes(digested(body))
    return path


def refusal(path: Path) -> str:
    """Read a checkpoint in a process that gets 200 MB beyond what it has, and one second of work."""
    told, tell = os.pipe()

    def bounded() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + 200 * 10**6
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(10)  # for what waits without working
        start = time.process_time()
        try:
            load_checkpoint(path)
        finally:
            os.write(tell, struct.pack("<d", time.process_time() - start))

    outcome = in_child(bounded)
    os.close(tell)
    with os.fdopen(told, "rb") as stream:
        (seconds,) = struct.unpack("<d", stream.read())
    assert seconds < 1
    return outcome


def test_what_is_forged_well_is_read(tmp_path: Path) -> None:
    """The tests below refuse what they say they refuse, and not the forgery as such."""
    assert refusal(forge(tmp_path / "sound")) == "ok"
    assert refusal(forge(tmp_path / "other", tensors=tensors_file({"a": entry()}, bytes(8)))) == "ok"


WIDE = {f"{i:05}": entry("U8", [0], [0, 0]) for i in range(MAX_TENSORS + 1)}
HOSTILE_TENSORS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "claims 0 bytes of 0"),
    "seven bytes": (bytes(7), "claims 0 bytes of 0"),
    "no header": (bytes(8), "not a JSON object"),
    "endless header": (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
    "header beyond the file": (struct.pack("<Q", 3) + b"{}", "claims 3 bytes of 2"),
    "header beyond the limit": (tensors_file(b"{" + b" " * MAX_HEADER + b"}"), f"at most {MAX_HEADER}"),
    "no JSON": (tensors_file(b"{a}"), "not JSON"),
    "no UTF-8": (tensors_file(b'{"\xff": 1}'), "not JSON"),
    "space first": (tensors_file(b" {}"), "not a JSON object"),
    "a list": (tensors_file(b"[]"), "not a JSON object"),
    "deep": (tensors_file(b'{"a":' + b"[" * 10_000), "not JSON"),
    "deep and closed": (tensors_file(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "not JSON"),
    "less deep": (tensors_file(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"), "nested more than"),
    "many small": (tensors_file(b'{"a":[' + b"{}," * 690_000 + b"{}]}"), "more than 20000 parts"),
    "twice": (tensors_file(b'{"a":1,"a":2}'), "names something twice"),
    "metadata": (tensors_file({"__metadata__": {"a": "b"}}), "cannot be called"),
    "unnamed": (tensors_file({"": entry()}, bytes(8)), "cannot be called"),
    "unprintable": (tensors_file({"a\x00": entry()}, bytes(8)), "cannot be called"),
    "surrogate": (tensors_file({"\ud800": entry()}, bytes(8)), "cannot be called"),
    "long name": (tensors_file({"a" * 201: entry()}, bytes(8)), "cannot be called"),
    "number for an entry": (tensors_file({"a": 3}), "dtype, shape and data_offsets"),
    "entry without a type": (tensors_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "dtype, shape"),
    "entry with more": (tensors_file({"a": {**entry(), "b": 1}}, bytes(8)), "dtype, shape"),
    "unknown type": (tensors_file({"a": entry("OBJ")}, bytes(8)), "the type of 'a' is 'OBJ'"),
    "list for a type": (tensors_file({"a": entry(["F32"])}, bytes(8)), "the type of 'a'"),
    "negative shape": (tensors_file({"a": entry(shape=[-1, -2])}, bytes(8)), "the shape of 'a'"),
    "truth for a shape": (tensors_file({"a": entry(shape=[True, 2])}, bytes(8)), "the shape of 'a'"),
    "fraction for a shape": (tensors_file({"a": entry(shape=[2.0])}, bytes(8)), "the shape of 'a'"),
    "number for a shape": (tensors_file({"a": entry(shape=2)}, bytes(8)), "the shape of 'a'"),
    "many dimensions": (tensors_file({"a": entry(shape=[1] * 100_000 + [2])}, bytes(8)), "the shape of 'a'"),
    "absurd shape": (tensors_file({"a": entry(shape=[2**62, 2**62])}, bytes(8)), "the shape of 'a'"),
    "absurd empty shape": (tensors_file({"a": entry(shape=[0, 2**62, 2**62], place=[0, 0])}), "the shape of 'a'"),
    "absurd number": (
        tensors_file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
        "JSON",
    ),
    "not a number": (tensors_file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), "holds NaN"),
    "one offset": (tensors_file({"a": entry(place=[0])}, bytes(8)), "the place of 'a'"),
    "negative offsets": (tensors_file({"a": entry(place=[-8, 0])}, bytes(8)), "the place of 'a'"),
    "offsets backwards": (tensors_file({"a": entry(place=[8, 0])}, bytes(8)), "takes 8 bytes and has -8"),
    "more than it takes": (tensors_file({"a": entry(place=[0, 12])}, bytes(12)), "takes 8 bytes and has 12"),
    "gap": (tensors_file({"a": entry(), "b": entry(place=[12, 20])}, bytes(20)), "overlap, or leave gaps"),
    "overlap": (tensors_file({"a": entry(), "b": entry(place=[4, 12])}, bytes(12)), "overlap, or leave gaps"),
    "beyond the end": (tensors_file({"a": entry()}, bytes(4)), "take 8 bytes of 4"),
    "something behind": (tensors_file({"a": entry()}, bytes(9)), "take 8 bytes of 9"),
    "many tensors": (tensors_file(WIDE), f"claims {MAX_TENSORS + 1} tensors"),
    "strange truth": (tensors_file({"a": entry("BOOL", [2], [0, 2])}, b"\x01\x02"), "neither 0 nor 1"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_a_hostile_file_of_tensors_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    told = refusal(forge(tmp_path / "hostile", tensors=content))
    assert told.startswith("DamagedCheckpointError | ")
    assert f"{TENSORS}: " in told
    assert message in told


HOSTILE_FACTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "deep": (b'{"format_version": 1, "facts":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "not JSON"),
    "less deep": (b'{"format_version": 1, "facts":' + b"[" * 200 + b"]" * 200 + b"}", "nested more than"),
    "many small": (b'{"format_version": 1, "facts":[' + b"[]," * 340_000 + b"[]]}", "more than 20000 parts"),
    "a list": (b"[]", "does not hold a JSON object"),
    "other keys": (b'{"facts": {}}', "does not hold facts alone"),
    "another version": (b'{"format_version": 2, "facts": {}}', "does not hold facts alone"),
    "a number": (b'{"format_version": 1, "facts": 3}', "not a JSON object"),
    "twice": (b'{"format_version": 1, "facts": {"a": 1, "a": 2}}', "names something twice"),
    "NaN": (b'{"format_version": 1, "facts": {"a": NaN}}', "holds NaN"),
    "too large": (b'{"format_version": 1, "facts": {}}' + b" " * MAX_FACTS, "are read"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE_FACTS.values(), ids=HOSTILE_FACTS.keys())
def test_hostile_facts_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    told = refusal(forge(tmp_path / "hostile", facts=content))
    assert told.startswith("DamagedCheckpointError | ")
    assert f"{FACTS}: " in told
    assert message in told


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda files: {new if name == old else name: value for name, value in files.items()}


def with_entry(value: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda files: {**files, FACTS: value}


SHA = "0" * 64
SOME = Manifest(1, tensors=entry_of(b""), facts=entry_of(b""))
HOSTILE_MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "path traversal": ({"files": renamed(FACTS, "../../../etc/passwd")}, "names other files"),
    "absolute name": ({"files": renamed(FACTS, "/etc/passwd")}, "names other files"),
    "extra name": ({"files": lambda files: {**files, "policy.py": files[FACTS]}}, "names other files"),
    "missing name": ({"files": lambda files: {FACTS: files[FACTS]}}, "names other files"),
    "list for files": ({"files": lambda _: [TENSORS, FACTS]}, "names other files"),
    "number for an entry": ({"files": with_entry(3)}, f"entry of {FACTS}"),
    "negative size": ({"files": with_entry({"bytes": -1, "sha256": SHA})}, f"entry of {FACTS}"),
    "truth for a size": ({"files": with_entry({"bytes": True, "sha256": SHA})}, f"entry of {FACTS}"),
    "short digest": ({"files": with_entry({"bytes": 3, "sha256": "0"})}, f"entry of {FACTS}"),
    "list for a digest": ({"files": with_entry({"bytes": 3, "sha256": [SHA]})}, f"entry of {FACTS}"),
    "more in an entry": ({"files": with_entry({"bytes": 3, "sha256": SHA, "path": "/etc"})}, f"entry of {FACTS}"),
    "negative step": ({"step": -1}, "its step is -1"),
    "truth for a step": ({"step": True}, "its step is True"),
    "absurd step": ({"step": 10**3000}, "its step is 1000"),
    "infinite step": ({"step": math.inf}, "which JSON has not"),
    "text for a step": ({"step": "1"}, "its step is '1'"),
}


@pytest.mark.parametrize(("forgery", "message"), HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS.keys())
def test_a_hostile_manifest_is_refused(tmp_path: Path, forgery: dict[str, Any], message: str) -> None:
    told = refusal(forge(tmp_path / "hostile", **forgery))
    assert told.startswith("DamagedCheckpointError | ")
    assert message in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"digest": 3}', "its digest differs"),
        (b"{}", "its digest differs"),
        (b'{"step": 1e999, "digest": "0"}', "no manifest can hold"),
        (b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}", "JSON"),
        (b'{"a":' + b"[" * 60 + b"]" * 60 + b"}", "nested more than"),
        (b"{}" + b" " * 4096, "at most 4096 are read"),
        (digested({"format_version": 1, "step": 1, "files": {}, "more": 1}), "a step and files alone"),
        (digested({"format_version": 1, "step": 1}), "a step and files alone"),
        (encode_manifest(SOME) + b"\n", "not spelled as it was written"),
        (encode_manifest(SOME)[:-1], "not spelled as it was written"),
        (encode_manifest(SOME).replace(b'"step"', b'"step": 9,\n "step"'), "names something twice"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = forge(tmp_path / "hostile")
    (path / MANIFEST).write_bytes(content)
    told = refusal(path)
    assert told.startswith("DamagedCheckpointError | ")
    assert message in told


@pytest.mark.parametrize("version", [2, True, "1", None, 1.0, [1]])
def test_only_this_version_is_read(tmp_path: Path, version: object) -> None:
    told = refusal(forge(tmp_path / "hostile", version=version))
    assert told.startswith("CheckpointError | ")
    assert f"format_version {version!r}" in told


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "link to itself", "pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = save(tmp_path, 1)
    elsewhere = tmp_path / "elsewhere"
    (path / name).rename(elsewhere)
    match kind:
        case "link":
            (path / name).symlink_to(elsewhere)
        case "link to itself":
            (path / name).symlink_to(path / name)
        case "pipe":
            os.mkfifo(path / name)
        case "folder":
            (path / name).mkdir()
        case "device":
            try:
                os.mknod(path / name, 0o666 | 0o020000, os.makedev(1, 5))  # endless zeros
            except PermissionError:
                pytest.skip("making a device needs rights that this user has not")
    told = refusal(path)
    assert told.startswith("DamagedCheckpointError | ")
    assert f"{name}: it is " in told
    assert ("a symbolic link" if "link" in kind else "not a regular file") in told


def test_a_link_to_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(save(tmp_path, 1), target_is_directory=True)
    with pytest.raises(DamagedCheckpointError, match="symbolic link or a file"):
        load_checkpoint(tmp_path / "link")
    with pytest.raises(DamagedCheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")


def hollow(path: Path, num_bytes: int, header: bytes) -> Path:
    """Write a checkpoint whose tensors are a file full of holes: any size, and no room on the disk."""
    path = forge(path)
    with open(path / TENSORS, "wb") as stream:
        stream.write(header)
        stream.truncate(num_bytes)
    facts = entry_of((path / FACTS).read_bytes())
    tensors = type(facts)(num_bytes, SHA)
    (path / MANIFEST).write_bytes(encode_manifest(Manifest(1, tensors=tensors, facts=facts)))
    return path


def test_a_file_of_more_than_the_limit_is_not_begun(tmp_path: Path) -> None:
    told = refusal(hollow(tmp_path / "hollow", 2**40, b""))
    assert told.startswith("CheckpointError | ")
    assert f"got:      {2**40}" in told


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_file_that_is_larger_than_its_manifest_says_is_not_begun(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    size = (path / name).stat().st_size
    os.truncate(path / name, 2**40)
    told = refusal(path)
    assert told.startswith("DamagedCheckpointError | ")
    assert f"{name}: it has {2**40} bytes instead of {size}" in told


def test_an_absurd_header_of_a_large_file_is_not_read(tmp_path: Path) -> None:
    told = refusal(hollow(tmp_path / "hollow", 2**30, struct.pack("<Q", 2**29) + b"{"))
    assert told.startswith("DamagedCheckpointError | ")
    assert f"claims {2**29} bytes, and at most {MAX_HEADER}" in told


def test_a_large_wrong_file_does_not_take_its_size_in_memory(tmp_path: Path) -> None:
    num_bytes = 250 * 10**6
    header = json.dumps({"a": entry("U8", [num_bytes], [0, num_bytes])}).encode()
    told = refusal(hollow(tmp_path / "hollow", 8 + len(header) + num_bytes, struct.pack("<Q", len(header)) + header))
    assert told.startswith("DamagedCheckpointError | ")
    assert "its digest differs" in told


def test_a_file_that_changes_meanwhile_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its digest and the reading of its content."""
    path = save(tmp_path, 1)
    content = (path / FACTS).read_bytes()

    def then_changed(stream: BinaryIO) -> str:
        digest = digest_of(stream)
        (path / FACTS).write_bytes(content.replace(b"ppo", b"pqo"))
        return digest

    monkeypatch.setattr(loading, "digest_of", then_changed)
    with pytest.raises(DamagedCheckpointError, match=f"{FACTS}: it changed while it was read"):
        load_checkpoint(path)
    (path / FACTS).write_bytes(content)

    def then_emptied(stream: BinaryIO) -> str:
        (path / FACTS).write_bytes(b"")
        return entry_of(content).sha256

    monkeypatch.setattr(loading, "digest_of", then_emptied)
    with pytest.raises(DamagedCheckpointError, match=f"{FACTS}: its size changed"):
        load_checkpoint(path)


def test_a_limit_of_ones_own_holds(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"<= 100 bytes of tensors(.|\n)*max_bytes="):
        load_checkpoint(path, max_bytes=100)
    with pytest.raises(CheckpointError, match="max_bytes="):
        newest_checkpoint(tmp_path, say=pytest.fail, max_bytes=100)


def test_many_false_checkpoints_do_not_hold_up_for_long(tmp_path: Path) -> None:
    for step in range(2000):
        (tmp_path / name_of(step)).mkdir()
    said: list[str] = []
    start = time.process_time()
    with pytest.raises(CheckpointError, match="2000 damaged"):
        newest_checkpoint(tmp_path, say=said.append)
    assert time.process_time() - start < 1
    assert len(said) == 16


class Malicious:
    """What a pickle can do: call anything with anything when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", [*FILES, "best.json"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    mark, content = tmp_path / "mark", pickle.dumps(Malicious(tmp_path / "mark"))
    path = forge(tmp_path / "forged", facts=content) if name == FACTS else forge(tmp_path / "forged", tensors=content)
    if name == MANIFEST:
        (path / MANIFEST).write_bytes(content)
    if name == "best.json":
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DamagedCheckpointError):
            named_checkpoint(tmp_path, "best")
    else:
        with pytest.raises(DamagedCheckpointError, match=name):
            load_checkpoint(path)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # it would have
