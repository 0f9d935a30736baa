"""One thread, a table at the end, and a file of results for each file of benchmarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch

from benchmarks.measure import SEED, Row, write

torch.set_num_threads(1)

_ledger: dict[str, list[Row]] = defaultdict(list)


@pytest.fixture(autouse=True)
def fixed_stream() -> None:
    torch.manual_seed(SEED)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Take down a figure for the table and the file of results."""
    name = request.path.stem.removeprefix("test_")
    return lambda row: _ledger[name].append(row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write the results of every file that ran."""
    if not _ledger:
        return
    terminalreporter.section("figures")
    rows = [row for each in _ledger.values() for row in each]
    width = max(len(row.claim) for row in rows)
    for row in rows:
        figure = f"{row.figure:.3g} {row.unit}"
        terminalreporter.write_line(f"{row.claim:<{width}}  {figure:>12}  target {row.target:<10} {row.verdict}")
    for name, each in _ledger.items():
        terminalreporter.write_line(f"wrote {write(name, each)}")
