"""Studies and sweeps of seeds on a Ray cluster that is there already: one of two nodes, started here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentpg.runs import newest_checkpoint
from latentpg.studies.cellfile import Row
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore, fingerprint_of
from tests.training.runs import words

ROOT = Path(__file__).parents[2]
KEYS = tuple(f"cell {index}" for index in range(12))
FINGERPRINT = fingerprint_of({"study": "on two nodes"})

pytestmark = [pytest.mark.slow, pytest.mark.production]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

STUDY = """
import sys
from pathlib import Path
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore
from tests.studies.test_ray import FINGERPRINT, KEYS, where

run_cells(KEYS, where, CellStore(Path(sys.argv[1]), FINGERPRINT), num_workers=2, backend="ray")
"""


def where(key: str) -> list[Row]:
    """Draw from the cell's own stream, and say which node it was."""
    import time
    import zlib

    from latentpg.numerics.rng import seeded

    time.sleep(0.3)
    node = "none"
    if "ray" in sys.modules:
        import ray

        node = str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else "none"
    with seeded(zlib.crc32(key.encode())):
        return [{"cell": key, "value": float(torch.randn(())), "node": node}]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=environment(""), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert cluster.stdout is not None and cluster.stdin is not None
    try:
        found = ""
        while not found.partition(":")[2].strip().isdigit():
            found = cluster.stdout.readline()
            assert found, "the cluster did not start"
        yield found.strip()
    finally:
        try:
            cluster.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            cluster.kill()
            cluster.communicate()


def environment(address: str) -> dict[str, str]:
    told = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **told, **({"RAY_ADDRESS": address} if address else {})}


def run(command: list[str], address: str) -> str:
    told = subprocess.run(
        command, cwd=ROOT, env=environment(address), capture_output=True, text=True, timeout=400, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def test_cells_run_on_both_nodes_and_give_the_same_rows(address: str, tmp_path: Path) -> None:
    run([sys.executable, "-c", STUDY, str(tmp_path / "there")], address)
    there, here = CellStore(tmp_path / "there", FINGERPRINT), CellStore(tmp_path / "here", FINGERPRINT)
    run_cells(KEYS, where, here)
    nodes = {str(there.read(key).rows[0]["node"]) for key in KEYS}
    assert len(nodes) == 2 and "none" not in nodes
    assert [there.read(key).rows[0]["value"] for key in KEYS] == [here.read(key).rows[0]["value"] for key in KEYS]


def test_seeds_train_on_the_cluster_as_they_do_here(address: str, tmp_path: Path) -> None:
    latentpg = [sys.executable, "-m", "latentpg", "train", *words(total_timesteps=64), "--seeds", "0:2"]
    out = run([*latentpg, "--backend", "ray", "--num-workers", "2", "--out", str(tmp_path / "there")], address)
    assert "run     " in out
    run([*latentpg, "--out", str(tmp_path / "here")], "")
    for seed in range(2):
        one, two = (newest_checkpoint(tmp_path / place / f"seed-{seed}" / "checkpoints") for place in ("here", "there"))
        assert one.step == two.step == 64 and not [n for n in one.state if not torch.equal(one.state[n], two.state[n])]
        assert json.loads((tmp_path / "there" / f"seed-{seed}" / "result.json").read_text())["finished"] is True
