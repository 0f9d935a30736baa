"""Run what is missing: ``python -m benchmarks.learning [STUDY ...] [--match TEXT] [--workers 2]``.

Each cell and seed is a process of its own, started again by the next call if it did not end well; ``--list`` shows what
there is and what is missing. ``python -m benchmarks.learning.page`` then writes the page and its figures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks.learning.store import STUDIES, Cell, cells, run
from benchmarks.measure import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), choices=STUDIES, metavar="STUDY")
    parser.add_argument("--match", nargs="*", default=[""], help="only cells whose name has one of these in it")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side, of one thread each")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--one", nargs=2, metavar=("CELL", "SEED"), help="run this one, here")
    options = parser.parse_args()
    if options.one is not None:
        run(Cell(options.studies[0], options.one[0], int(options.one[1])))
        return 0
    chosen = [cell for cell in cells(tuple(options.studies)) if any(text in cell.name for text in options.match)]
    if options.list:
        for cell in chosen:
            print("there  " if cell.path.is_file() else "missing", *cell)
        return 0
    missing = [cell for cell in chosen if not cell.path.is_file()]
    with ThreadPoolExecutor(options.workers) as pool:
        failed = [cell for cell, ok in zip(missing, pool.map(_in_process, missing), strict=True) if not ok]
    for cell in failed:
        print("failed:", *cell, file=sys.stderr)
    return 1 if failed else 0


def _in_process(cell: Cell) -> bool:
    """Run one cell in a process of its own; one that another call has finished meanwhile is left alone."""
    if cell.path.is_file():
        return True
    command = [sys.executable, "-m", "benchmarks.learning", cell.study, "--one", cell.name, str(cell.seed)]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"})
    print("done  " if ended.returncode == 0 else "FAILED", *cell, flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
