"""Every file that a command reads, replaced by a pickle that runs code when it is loaded: never run, told of in a word.

What each format refuses besides is tested where the format is read: ``tests/runs``, ``tests/data``, ``tests/studies``.
"""

import os
import pickle
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from latentpg import cli
from tests.training.runs import spelled, words

RUN_FILES = (
    "config.toml",
    "run.json",
    "metrics.jsonl",
    "checkpoints/best.json",
    "manifest.json",
    "facts.json",
    "tensors.safetensors",
)
"""Files of a run's folder; the last three are those of its newest checkpoint."""


class Bomb:
    """Makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert command("train", *words(total_timesteps=64), "--out", str(folder)) == 0
    return folder


def command(*given: str) -> int:
    before, sys.argv = sys.argv, ["latentpg", *given]
    try:
        return cli.main()
    finally:
        sys.argv = before


def bomb(path: Path, mark: Path) -> bytes:
    """Put a pickle in the place of a file, and hold that it does go off when somebody loads it."""
    content = pickle.dumps(Bomb(mark))
    pickle.loads(content)
    mark.rmdir()
    path.write_bytes(content)
    return content


def place(folder: Path, name: str) -> Path:
    if "/" in name or (folder / name).is_file():
        return folder / name
    return max((folder / "checkpoints").glob("step-*")) / name


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("what", ["evaluate", "resume"])
def test_a_run_with_a_pickle_in_it(
    what: str, name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mark = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(run, folder)
    content = bomb(place(folder, name), mark)
    options = ["--episodes", "4"] if what == "evaluate" else ["--total-timesteps", "64"]
    status = command(what, str(folder), *options)
    told = capsys.readouterr()
    assert not mark.exists(), "the pickle was executed"
    assert "Traceback" not in told.err
    assert status in (0, 2) and (status == 0 or len(told.err) > 20), "neither done nor told why"
    if status == 2:
        assert place(folder, name).read_bytes() == content, "evidence was overwritten"


def archive(path: Path, mark: Path) -> None:
    """Write an .npz whose one member is an array of objects, which NumPy keeps as a pickle."""
    with zipfile.ZipFile(path, "w") as file:
        header = (
            b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
        )
        file.writestr("obs.npy", header + pickle.dumps([Bomb(mark)]))


def test_a_log_nested_out_of_all_measure_is_told_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "metrics.jsonl").write_text("[" * 100_000 + "\n", encoding="utf-8")
    assert command("resume", str(folder), "--total-timesteps", "64") == 2
    assert "line 1" in capsys.readouterr().err


ABSURD = {
    "brackets": b"[" * 60_000,
    "dots": b"a." * 30_000 + b"a = 1",
    "nested": b"a = " + b"[" * 30_000 + b"]" * 30_000,
    "digits": b"a = " + b"9" * 60_000,
    "large": b"# " * 2**24,
    "binary": bytes(range(256)) * 16,
}
"""Files of configuration that ask for more than any is given."""


@pytest.mark.parametrize("what", ["evaluate", "resume", "train"])
@pytest.mark.parametrize("name", ABSURD)
def test_a_configuration_that_is_absurd_ends_in_an_error_at_once(
    name: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_bytes(ABSURD[name])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    given = ["--config", str(tmp_path / "config.toml")] if what == "train" else [str(tmp_path)]
    assert command(what, *given) == 2
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["evaluate", "resume", "train", "study"])
def test_a_configuration_that_never_ends_is_not_waited_for(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "config.toml")
    file = str(tmp_path / "config.toml")
    given = {"train": ["--config", file], "study": [file]}.get(what, [str(tmp_path)])
    assert command(what, *given) == 2
    assert "Error in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rest",
    ['"time/total_timesteps": 1e999', '"time/total_timesteps": true', '"time/total_timesteps": 0, "a": []',
     '"time/total_timesteps": 0, "a": null'],
)  # fmt: skip
def test_a_log_that_holds_what_no_log_holds_is_told_of(
    rest: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "metrics.jsonl").write_text(f'{{"format_version": 1, {rest}}}\n', encoding="utf-8")
    assert command("resume", str(folder), "--total-timesteps", "64") == 2
    assert "line 1" in capsys.readouterr().err


STUDY = """format_version = 1
name = "mine"
replicates = 8
[source]
kind = "recorded"
path = "{path}"
[target]
kind = "gradient"
[[lines]]
estimator = "posterior-is"
"""


@pytest.mark.parametrize(
    "what",
    ["study file", "study's archive", "study's pickle", "train's options", "imitate's options", "imitate's data"],
)
def test_a_file_of_the_users_that_is_a_pickle(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark, file = tmp_path / "executed", tmp_path / "given.toml"
    if what in ("study file", "train's options", "imitate's options"):
        bomb(file, mark)
    else:
        data = tmp_path / "recorded.npz"  # of imitate's it is an archive whose one member is a pickle
        bomb(data, mark) if what == "study's pickle" else archive(data, mark)
        file.write_text(STUDY.format(path=data), encoding="utf-8")
    if what == "train's options":
        status = command("train", "--config", str(file))
    elif what.startswith("imitate"):
        given = ["--config", str(file)] if what == "imitate's options" else ["--data", str(tmp_path / "recorded.npz")]
        status = command("imitate", *given)
    else:
        status = command("study", str(file))
    assert status == 2 and not mark.exists()
    assert "Traceback" not in (err := capsys.readouterr().err) and len(err) > 20


def test_an_id_that_imports_a_module_is_not_taken_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from an options file nor from a run's folder: only a flag on the command line can say so."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.toml").write_text('env = "evil:Env-v0"\n', encoding="utf-8")
    assert command("train", "--config", "options.toml", *spelled({"total_timesteps": 64})) == 2
    assert not (tmp_path / "executed").exists() and "--trust-env" in capsys.readouterr().err
