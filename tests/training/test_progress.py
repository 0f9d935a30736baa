"""What is shown of a run while it goes on."""

import io

from rich.console import Console

from latentpg.studies.progress import LINES
from latentpg.training.log import STEPS
from latentpg.training.progress import describe, progress


def test_a_row_is_described_by_short_names_in_one_order() -> None:
    row = {"time/fps": 2041.7, "train/approx_kl": 0.01234, "rollout/ep_rew_mean": 21.25, "train/value_loss": 3.0}
    assert describe(row) == "return 21.2, KL 0.0123, steps/s 2042"


def test_where_there_is_no_terminal_a_few_lines_are_written() -> None:
    text = io.StringIO()
    with progress(1000, console=Console(file=text, width=40)) as show:
        for steps in range(0, 1001, 5):
            show({STEPS: steps, "train/approx_kl": 0.5, "rollout/ep_rew_mean": float(steps), "train/ess": 0.5})
    lines = text.getvalue().splitlines()
    assert len(lines) == LINES
    assert lines[0].startswith("100/1000 steps, about ") and lines[0].endswith("return 100.0, ESS/K 0.50, KL 0.5000")


def test_what_a_row_has_not_is_shown_as_it_was_last() -> None:
    text = io.StringIO()
    with progress(100, console=Console(file=text, width=40), done=50) as show:
        show({STEPS: 50, "rollout/ep_rew_mean": 7.0})
        show({STEPS: 60, "train/ess": 0.5})
    assert text.getvalue().endswith("return 7.0, ESS/K 0.50\n") and text.getvalue().count("\n") == 1


def test_a_terminal_gets_one_live_line() -> None:
    text = io.StringIO()
    with progress(100, console=Console(file=text, force_terminal=True, width=160)) as show:
        show({STEPS: 120, "rollout/ep_rew_mean": 7.0})
    assert "100/100" in text.getvalue() and "return 7.0" in text.getvalue()
