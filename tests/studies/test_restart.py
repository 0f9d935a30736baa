"""The whole command, killed at any moment and started again; and its memory over a thousand cells."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentpg.studies import Line, Study, run_study
from latentpg.studies.toys import RandomToys

FILE = """
num_replicates = 60
num_timings = 4
figures = ["bias"]
[source]
kind = "toys"
num_rows = 6
[axes]
num_particles = [1, 2, 4]
guide = ["prior", "random"]
[[lines]]
estimator = "conditional-is"
proposal = "guide"
[[lines]]
estimator = "posterior-is"
proposal = "prior"
"""


def start(file: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "latentpg.cli", "study", str(file), "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def table(out: Path) -> list[dict[str, str]]:
    """Read what does not hang on the clock."""
    with (out / "table.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["measure"] != "seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("finished", [2, 8])
def test_killed_and_started_again_it_ends_with_the_same_table(finished: int, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(FILE)
    whole = start(file, tmp_path / "whole")
    killed = start(file, tmp_path / "killed", "--num-workers", "2")
    cells = tmp_path / "killed" / "cells"
    while len(list(cells.glob("*.json")) if cells.is_dir() else []) < finished:
        assert killed.poll() is None, killed.communicate()[1].decode()
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "report.html").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    again = start(file, tmp_path / "killed", "--resume")
    for process in (whole, again):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert len(table(tmp_path / "whole")) > 100
    after = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert kept and kept.items() <= after.items()  # what was finished was not computed again
    assert len(after) == 12


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_cells() -> None:
    """The peak after a thousand cells is that after a hundred: a cell's arrays, and the problems kept, are let go."""
    study = Study(
        name="many",
        title="Many cells",
        source=RandomToys(num_rows=2),
        lines=(Line("conditional-is", "prior"),),
        axes={"scale": tuple(0.5 + place / 1000 for place in range(1000)), "num_particles": (4,)},
        x="scale",
        num_replicates=100,
        num_timings=4,
    )
    peaks: list[int] = []
    run_study(study, advance=lambda key: peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    assert len(peaks) == 1000
    assert peaks[-1] - peaks[99] < 20_000, f"{(peaks[-1] - peaks[99]) / 1000:.1f} MB more"
