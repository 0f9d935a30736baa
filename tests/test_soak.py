"""A short soak, and that growth is noticed; ``make soak`` runs half an hour of it."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.__main__ import ALLOWED, Held, growth

ROOT = Path(__file__).parents[1]
STILL = Held(2**28, 10, 1, 0)


@pytest.mark.parametrize(
    ("later", "name"),
    [
        (Held(2**28 + ALLOWED + 1, 10, 1, 0), "memory"),
        (Held(2**28, 11, 1, 0), "files"),
        (Held(2**28, 10, 2, 0), "threads"),
        (Held(2**28, 10, 1, 1), "children"),
    ],
)
def test_growth_is_noticed(later: Held, name: str) -> None:
    assert growth([STILL] * 12) == growth([later] + [STILL] * 11) == []
    (line,) = growth([STILL] * 10 + [later] * 2)
    assert line.startswith(f"{name} grew")


@pytest.mark.production
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="asks glibc")
def test_memory_that_is_held_counts_and_what_was_freed_does_not() -> None:
    before, blocks = Held.now(), [bytes([1]) * 2**14 for _ in range(2000)]  # 31 MB, in pieces that the heap holds
    last, held = blocks[-1], Held.now()
    assert held.memory - before.memory > 28 * 2**20
    del blocks  # all but the last, below which the heap would not shrink
    after = Held.now()
    assert after.memory - before.memory < 4 * 2**20 < after.untrimmed - before.memory
    assert len(last) == 2**14


@pytest.mark.slow
@pytest.mark.production
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_three_minutes_leave_memory_and_open_files_flat() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "tests.soak", "180"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "flat over" in ended.stdout
