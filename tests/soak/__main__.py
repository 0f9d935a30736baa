"""Train, evaluate, go on, and run a study in a loop: ``python -m tests.soak [SECONDS]``.

Resident memory, open files, threads and child processes are read after every round and printed; the exit status is 1 if
any has grown once everything was met for the first time. Rounds differ in algorithm and in how environments are run.

What was freed is given back to the system before memory is read, where the C library can be asked to: how much of it an
allocator keeps hangs on the order in which blocks of all sizes came and went, and wanders by megabytes. Memory as it
was before that is printed beside it.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import astuple, dataclass
from pathlib import Path

from latentpg import cli

SECONDS = 1800
"""How long it goes on unless told otherwise."""

WARM = 0.25
"""The share of the rounds in which caches may fill, and the first cycle in any case."""

ALLOWED = 8 * 2**20
"""Bytes by which the highest memory of the last quarter may lie above that of the quarter after the warm one."""

TRAIN = {
    "ppo": ("--num-steps", "16", "--num-epochs", "2", "--batch-size", "16"),
    "a2c": ("--num-steps", "8"),
    "grpo": ("--num-groups", "1", "--group-size", "3", "--num-epochs", "1", "--batch-size", "64"),
    "reinforce": ("--num-episodes", "3", "--batch-size", "64"),
}
"""Options of a short run by its algorithm."""

COMMON = (
    *("--env", "CartPole-v1", "--no-tuned", "--num-envs", "2", "--hidden", "8", "--num-particles", "2"),
    *("--proposal", "guide", "--eval-episodes", "4", "--eval-every", "128", "--checkpoint-every", "64"),
)
"""Those that all have."""

CYCLE = 2 * len(TRAIN)
"""Rounds after which everything has been met once: each algorithm, in this process and in processes of its own."""

STUDY = """
num_replicates = 8
figures = ["bias"]
[source]
kind = "toys"
num_rows = 4
[axes]
num_particles = [1, 2, 4]
[[lines]]
estimator = "conditional-is"
proposal = "guide"
"""


@dataclass(frozen=True)
class Held:
    """What the process holds: bytes of resident memory, and numbers of open files, threads and living children.

    ``untrimmed`` is the memory before what was freed had been given back.
    """

    memory: int
    files: int
    threads: int
    children: int
    untrimmed: int = 0

    @classmethod
    def now(cls) -> Held:
        """Read it."""
        untrimmed = resident()
        give_back()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
        files = len(os.listdir("/proc/self/fd")) - 1  # one is that of the listing
        return cls(resident(), files, threading.active_count(), len(children), untrimmed)


def resident() -> int:
    """Read the bytes of resident memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Collect garbage, and hand freed memory back to the system where the C library is glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main() -> int:
    """Go round until the time is over, and tell what grew."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    end, found = time.monotonic() + seconds, []
    rounds = itertools.cycle(itertools.product(TRAIN, ("sync", "async")))
    for number in itertools.count(1):
        algo, mode = next(rounds)
        go_round(algo, mode, number)
        found.append(held := Held.now())
        memory = f"{held.memory / 2**20:7.1f} MB (untrimmed {held.untrimmed / 2**20:.1f})"
        print(f"round {number:4d}  {algo:9s} {mode:5s}  {memory}  {astuple(held)[1:4]}", flush=True)
        if time.monotonic() > end and number >= 2 * CYCLE:
            break
    grown = growth(found)
    print("\n".join(grown) or f"flat over {len(found)} rounds in {seconds:.0f} s", flush=True)
    return 1 if grown else 0


def go_round(algo: str, mode: str, seed: int) -> None:
    """Train, stop half-way by a shorter run, evaluate, go on, and run a study with a process of its own."""
    with tempfile.TemporaryDirectory() as folder, quietly(Path(folder) / "said"):
        run, study = Path(folder) / "run", Path(folder) / "mine.toml"
        study.write_text(STUDY, encoding="utf-8")
        chosen = [*COMMON, "--algo", algo, *TRAIN[algo], "--vectorization-mode", mode, "--seed", str(seed)]
        told("train", *chosen, "--total-timesteps", "256", "--out", str(run))
        told("evaluate", str(run), "--episodes", "8", "--checkpoint", "best")
        told("resume", str(run))
        told("study", str(study), "--out", str(Path(folder) / "study"), "--seed", str(seed))
        told("study", str(study), "--out", str(Path(folder) / "study"), "--seed", str(seed), "--resume")
        told("list")


def told(*words: str) -> None:
    """Run a command that must end well."""
    sys.argv = ["latentpg", *words]
    status = cli.main()
    assert status == 0, f"{words} ended with {status}"


@contextmanager
def quietly(path: Path) -> Iterator[None]:
    """Send what is said to a file."""
    with path.open("w", encoding="utf-8") as said, redirect_stdout(said), redirect_stderr(said):
        yield


def growth(found: Sequence[Held]) -> list[str]:
    """Name what has grown from after the warm rounds to the last quarter.

    >>> still = Held(2**27, 10, 1, 0)
    >>> growth([still] * 8), growth([still] * 6 + [Held(2**28, 11, 1, 0)] * 2)
    ([], ['memory grew from 128.0 to 256.0 MB', 'files grew from 10 to 11'])
    """
    begins, last = max(int(len(found) * WARM), min(CYCLE, len(found) // 2)), found[-max(len(found) // 4, 1) :]
    early = found[begins : begins + max(len(found) // 4, 1)]
    before, after = max(each.memory for each in early), max(each.memory for each in last)
    grown = [f"memory grew from {before / 2**20:.1f} to {after / 2**20:.1f} MB"] if after - before > ALLOWED else []
    for name in ("files", "threads", "children"):
        most, now = max(getattr(each, name) for each in early), max(getattr(each, name) for each in last)
        grown += [f"{name} grew from {most} to {now}"] if now > most else []
    return grown


if __name__ == "__main__":
    sys.exit(main())
