"""The same draws by the dozen more, once in `make test-all`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.production
@pytest.mark.parametrize("name", ["command_lines", "cloning_lines", "run_folders", "data_files", "spaces", "life"])
def test_ten_times_as_many_draws_find_nothing_either(name: str) -> None:
    environment = {**os.environ, "LATENTPG_FUZZ": "10", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/fuzz/test_{name}.py"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1500
    )
    assert ended.returncode == 0, ended.stdout[-6000:]
