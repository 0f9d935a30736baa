"""Print, as JSON, the peak memory and the seconds of one large gradient; a fresh process has no earlier peak.

    python -m benchmarks.peak_memory PARTICLES_PER_BLOCK FILE

The gradient and the values are written to FILE as raw float32.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.cases import make_case
from latentpg.estimators import Estimator, Guide, PosteriorIS
from latentpg.programs import row_blocks

ROWS, PARTICLES = 8192, 64


def status(name: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``) or at the peak since the last reset (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def reset_peak() -> None:
    """Let the kernel forget the peak that preparing the case has left."""
    Path("/proc/self/clear_refs").write_text("5")


def main(block: int, path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    estimator: Estimator = PosteriorIS(PARTICLES, Guide())
    make_case("Gaussian latent, Box action", rows=32).by_library(PosteriorIS(8, Guide()))  # what is set up once
    case = make_case("Gaussian latent, Box action", rows=ROWS, num_particles=PARTICLES)
    reset_peak()
    start, clock = status("VmRSS"), time.perf_counter()
    with row_blocks(block):
        log_prob, gradient = case.by_library(estimator)
    seconds = time.perf_counter() - clock
    peak = status("VmHWM")
    path.write_bytes(torch.cat([log_prob.detach(), *[g.flatten() for g in gradient]]).numpy().tobytes())
    print(json.dumps({"rise in MB": (peak - start) / 1e6, "seconds": seconds, "values": len(log_prob)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
