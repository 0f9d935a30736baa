"""Every guard of the checkpoints has a test that fails without it: each is taken out in a copy, and a test must notice.

A line below names a file, the text that is the guard, what stands there without it, and a test; the copy's package
is what that test then imports.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARDS: dict[str, tuple[str, str, str, str]] = {
    "a link is followed": ("untrusted", 'getattr(os, "O_NOFOLLOW", 0)', "0", "no_regular_file"),
    "a pipe is waited for": (
        "untrusted",
        'getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)',
        'getattr(os, "O_NOFOLLOW", 0)',
        "no_regular_file",
    ),
    "anything is a file": (
        "untrusted",
        "if not stat.S_ISREG(os.fstat(handle).st_mode):",
        "if False:",
        "no_regular_file",
    ),
    "no permission is damage": ("untrusted", "errno.EIO})", "errno.EIO, errno.EACCES})", "no_damage"),
    "a small file has any size": ("untrusted", "if size > limit:", "if False:", "that_is_none"),
    "double keys": ("untrusted", "if len(whole) != len(pairs):", "if False:", "hostile"),
    "NaN in JSON": ("untrusted", ", parse_constant=_no_constant", "", "hostile"),
    "deep recursion": (
        "untrusted",
        "(ValueError, RecursionError) as error:  # nested",
        "ValueError as error:  # nested",
        "hostile",
    ),
    "any nesting": (
        "untrusted",
        'a JSON object")\n    _check_nesting(parsed)\n',
        'a JSON object")\n',
        "hostile",
    ),
    "any number of parts": ("untrusted", "if has_many_parts(content):", "if False:", "hostile"),
    "any header length": ("tensors", "if size < 8 or length > size - 8:", "if False:", "hostile"),
    "any header size": ("tensors", "if length > MAX_HEADER:", "if False:", "hostile or absurd_header"),
    "any number of tensors": ("tensors", "if len(entries) > MAX_TENSORS:", "if False:", "hostile"),
    "any name of a tensor": (
        "tensors",
        "    if not _is_name(name):\n        raise Ref",
        "    if False:\n        raise Ref",
        "hostile",
    ),
    "any type": ("tensors", "if not isinstance(dtype, str) or dtype not in DTYPES:", "if False:", "hostile"),
    "any shape": ("tensors", "if not _are_counts(shape) or len(shape) > MAX_DIMS:", "if False:", "hostile"),
    "any place": ("tensors", "if not _are_counts(place) or len(place) != 2:", "if False:", "hostile"),
    "shapes that overflow": ("tensors", "if extent > MAX_ELEMENTS:", "if False:", "hostile"),
    "another size than the shape's": ("tensors", "if end - begin != num_bytes:", "if False:", "hostile"),
    "gaps and overlaps": ("tensors", "if begin != end:", "if False:", "hostile"),
    "something behind": ("tensors", "if end != size - 8 - length:", "if False:", "hostile"),
    "strange truth values": ("tensors", "if value.dtype == torch.bool and", "if False and", "hostile"),
    "views of one storage": ("tensors", ".clone(memory_format=torch.contiguous_format)", "", "views"),
    "manifest without a digest": ("manifest", "if digest != _digest(body):", "if False:", "that_is_none"),
    "any version": (
        "manifest",
        "if type(version) is not int or version != FORMAT_VERSION:",
        "if False:",
        "only_this_version",
    ),
    "any file names": (
        "manifest",
        "if not isinstance(files, dict) or files.keys() != {TENSORS, FACTS}:",
        "if False:",
        "manifest",
    ),
    "any step": ("manifest", "    if not is_step(step):", "    if False:", "manifest"),
    "any spelling": ("manifest", "if encode_manifest(manifest) != content:", "if False:", "that_is_none"),
    "the text nan": ("manifest", " and value not in _SPELLED", "", "facts"),
    "facts of any depth": (
        "manifest",
        "if isinstance(value, Mapping | list | tuple) and not depth:",
        "if False:",
        "facts",
    ),
    "no digest of files": ("loading", "if digest_of(stream) != entry.sha256:", "if False:", "memory"),
    "no digest of what was read": (
        "loading",
        "    if entry_of(content) != entry:",
        "    if False:",
        "changes_meanwhile",
    ),
    "no size of files": ("loading", "if size_of(stream) != entry.size:", "if False:", "than_its_manifest"),
    "the library before the header": ("loading", "        if is_tensors:", "        if False:", "hostile"),
    "any size of tensors": ("loading", "if manifest.tensors.size > max_bytes:", "if False:", "limit"),
    "any size of facts": ("loading", "if manifest.facts.size > MAX_FACTS:", "if False:", "hostile_facts"),
    "a linked checkpoint": ("loading", "if not is_folder(path):", "if False:", "link_to_a_checkpoint"),
    "another step's name": (
        "loading",
        "if step_of(path.name) not in (None, manifest.step):",
        "if False:",
        "another_steps",
    ),
    "damage ends the search": (
        "loading",
        "except DamagedCheckpointError as error:\n            say",
        "except KeyError as error:\n            say",
        "flipped",
    ),
    "falling back in silence": ("loading", '            say(f"going', '            str(f"going', "flipped"),
    "an endless search": ("loading", "found[::-1][:MAX_ATTEMPTS]", "found[::-1]", "false_checkpoints"),
    "no flush of files": ("checkpoints", "        os.fsync(handle)\n", "", "on_the_disk_before"),
    "no flush of the new folder": ("checkpoints", "        sync_folder(temporary)\n", "", "on_the_disk_before"),
    "no flush of the rename": ("checkpoints", "    sync_folder(path.parent)\n", "", "on_the_disk_before"),
    "no flush of new parents": ("upkeep", "        sync_folder(folder.parent)\n", "", "new_folder"),
    "no reading back": ("checkpoints", "        _check_reads_back(temporary, max_bytes)\n", "", "read_back"),
    "written in place": (
        "checkpoints",
        'temporary = path.with_name(f".{path.name}.tmp")',
        "temporary = path",
        "kill_at_any",
    ),
    "one write for all": ("checkpoints", "while rest:", "if rest:", "short_write"),
    "leftovers of a failure": (
        "checkpoints",
        "            remove(temporary)\n",
        "            pass\n",
        "failing_disk or interrupted",
    ),
    "errors of the system": (
        "checkpoints",
        "    except OSError as error:\n        raise CheckpointError(\n",
        "    except KeyError as error:\n        raise CheckpointError(\n",
        "failing_disk",
    ),
    "any later checkpoint": (
        "checkpoints",
        "                _refuse_after_later(path.parent, step, max_bytes)\n",
        "",
        "before_a_later",
    ),
    "any other content": (
        "checkpoints",
        "if read_bounded(path / MANIFEST, limit=MAX_MANIFEST) != manifest:",
        "if False:",
        "saved_once",
    ),
    "removing in place": ("upkeep", "    os.rename(path, moved)\n    remove(moved)", "    remove(path)", "kill_at_any"),
    "leftovers of a kill": ("upkeep", "if _TEMPORARY.fullmatch(name):", "if False:", "leftovers"),
    "any leftovers": ("upkeep", "if _TEMPORARY.fullmatch(name):", 'if name.endswith(".tmp"):', "leftovers"),
    "no lock": ("upkeep", "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "two_writers"),
    "retention of what is named": ("upkeep", "path.name not in kept and", "True and", "protected_or_named"),
    "retention of what is protected": ("upkeep", " and path.name not in protect", "", "protected_or_named"),
    "a damaged slot frees all": (
        "upkeep",
        "    except RefusedError:\n        return",
        "    except RefusedError:\n        kept = set()",
        "slot_that_tells",
    ),
    "links are checkpoints": (
        "upkeep",
        "if s is not None) if is_folder(path)}",
        "if s is not None)}",
        "named_as_a_checkpoint",
    ),
    "a slot leads anywhere": (
        "upkeep",
        "if not isinstance(name, str) or step_of(name) is None:",
        "if False:",
        "slot_that_tells",
    ),
    "a slot of any name": ("upkeep", "if not is_slot(slot):", "if False:", "plain_name"),
}


def test_every_guard_stands_where_it_is_looked_for() -> None:
    for name, (module, guard, _, _) in GUARDS.items():
        source = (ROOT / "latentpg" / "runs" / f"{module}.py").read_text(encoding="utf-8")
        assert source.count(guard) == 1, f"{name}: {guard!r} is {source.count(guard)} times in {module}.py"


# One process imports what takes long and forks for each guard, which then imports the copy's package.
DRIVER = """
import json, os, shutil, signal, sys
from pathlib import Path
import gymnasium, pyro, pytest, safetensors.torch, torch
torch.set_num_threads(1)
root, place, guards = Path(sys.argv[1]), Path(sys.argv[2]), json.load(sys.stdin)
for number, (name, (module, guard, without, test)) in enumerate(guards.items()):
    copy = place / str(number)
    for part in ("latentpg", "tests/runs"):
        shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", copy)
    source = copy / "latentpg" / "runs" / f"{module}.py"
    source.write_text(source.read_text("utf-8").replace(guard, without), "utf-8")
    child = os.fork()
    if not child:
        signal.alarm(100)
        os.chdir(copy)
        sys.path[:] = [str(copy), *(entry for entry in sys.path if Path(entry or ".").resolve() != root)]
        output = os.open("output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        chosen = ["-x", "-q", "-p", "no:cacheprovider", "--basetemp=kept", "-m", "not slow", "-k", test]
        os._exit(pytest.main([*chosen, "tests/runs/test_checkpoints.py"]))
    _, status = os.waitpid(child, 0)
    said = (copy / "output").read_text("utf-8", "replace")
    print(json.dumps([name, os.waitstatus_to_exitcode(status), said[-600:]]), flush=True)
    shutil.rmtree(copy, ignore_errors=True)
"""


def outcomes(place: Path, guards: dict[str, tuple[str, str, str, str]]) -> dict[str, tuple[int, str]]:
    """Take out each guard, and return the exit code and the last lines of the tests that should notice."""
    told = subprocess.run(
        [sys.executable, "-c", DRIVER, str(ROOT), str(place)],
        cwd=place,
        input=json.dumps(guards),
        capture_output=True,
        text=True,
        timeout=1500,
        check=True,
    )
    found = [json.loads(line) for line in told.stdout.splitlines()]
    return {name: (code, said) for name, code, said in found}


@pytest.mark.slow
def test_every_guard_that_is_gone_is_noticed(tmp_path: Path) -> None:
    sound = ("untrusted", "import errno", "import errno", "hostile or false or slot or kill_at_any or retention")
    found = outcomes(tmp_path, {"nothing": sound, **GUARDS})
    assert found.keys() == {"nothing", *GUARDS}
    assert found.pop("nothing")[0] == 0  # with all guards in place the copy passes
    unnoticed = {name: said for name, (code, said) in found.items() if code != 1 or " failed" not in said}
    assert not unnoticed, "\n\n".join(f"{name}: {said}" for name, said in unnoticed.items())
