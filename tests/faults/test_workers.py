"""Worker processes of environments by the command: named in time, none left, and the run can be gone on with."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latentpg.errors import OptionError
from latentpg.runs import newest_checkpoint
from latentpg.training.parts import RunOptions
from tests.faults.commands import ended, start
from tests.faults.environments import register_troubled
from tests.training.runs import shortly, small, spelled

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="processes of POSIX"),
    pytest.mark.production,  # a forked process imports nothing anew
]

TOLD = {
    "hangs": "gave no answer within 2 seconds",
    "is stopped": "gave no answer within 2 seconds",
    "is killed": "is gone",
    "raises": "ValueError: the arm is bent",
}
"""What goes wrong, and what is said of it."""


def options(**changes: Any) -> list[str]:  # noqa: ANN401 (any option)
    here = {"env": "Troubled-v0", "vectorization_mode": "async", "worker_timeout": 2.0}
    return spelled(shortly("ppo", **{**here, **changes}))


@pytest.mark.parametrize("what", TOLD)
def test_a_worker_that_fails_ends_the_run_which_can_be_gone_on_with(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    troubled = partial(register_troubled, what, tmp_path / "mark")
    command = start("train", *options(), "--out", str(folder), told=tmp_path / "told", before=troubled)
    assert command.wait(40) == 2
    text = command.text()
    assert "Traceback" not in text and "the worker process of member" in text and TOLD[what] in text
    assert "its episode began with seed " in text and "its last action was " in text and "action was None" not in text
    assert command.leaves_no_process()
    assert TOLD[what] in json.loads((folder / "fault.json").read_text(encoding="utf-8"))["error"]
    assert newest_checkpoint(folder / "checkpoints", say=pytest.fail).step == 0
    status, text = ended("resume", str(folder), told=tmp_path / "told", before=troubled)
    assert status == 0, text
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["exact_resume"] is True


@pytest.mark.parametrize("what", ["hangs", "is killed", "raises"])
def test_one_that_cannot_be_started_leaves_nothing_behind(what: str, tmp_path: Path) -> None:
    troubled = partial(register_troubled, f"start: {what}", tmp_path / "mark")
    command = start("train", *options(), "--out", str(tmp_path / "run"), told=tmp_path / "told", before=troubled)
    assert command.wait(40) == 2
    assert "EnvironmentFault in environment worker: the worker process of member" in command.text()
    assert command.leaves_no_process()
    assert not (tmp_path / "run").exists()


def test_an_environment_that_raises_in_this_process_is_told_with_actions_and_seeds(tmp_path: Path) -> None:
    """Without worker processes there is no member to name; everything else is said."""
    words = spelled(shortly("ppo", env="Troubled-v0"))
    status, text = ended("train", *words, "--out", str(tmp_path / "run"), told=tmp_path / "told", before=here(tmp_path))
    assert status == 2 and "an environment raised" in text and "ValueError: the arm is bent" in text
    assert "the last actions were [" in text and "seeds of the last reset [" in text and "in misbehave" in text
    assert newest_checkpoint(tmp_path / "run" / "checkpoints", say=pytest.fail).step == 0


def here(tmp_path: Path) -> Any:  # noqa: ANN401 (what registers)
    """Register an environment that goes wrong in the process that learns: its owner is another."""
    return partial(_register_as_another, tmp_path / "mark")


def _register_as_another(mark: Path) -> None:
    pid = os.getpid
    os.getpid = lambda: -1
    try:
        register_troubled("raises", mark)
    finally:
        os.getpid = pid


def test_one_that_cannot_be_made_in_this_process_is_told(tmp_path: Path) -> None:
    def broken() -> None:
        import gymnasium

        def make(**given: Any) -> Any:  # noqa: ANN401 (what Gymnasium hands on)
            raise ZeroDivisionError("no wheels")

        gymnasium.register("Troubled-v0", entry_point=make)

    words = spelled(shortly("ppo", env="Troubled-v0"))
    status, text = ended("train", *words, "--out", str(tmp_path / "run"), told=tmp_path / "told", before=broken)
    assert status == 2 and "'Troubled-v0' cannot be made" in text and "ZeroDivisionError: no wheels" in text
    assert not (tmp_path / "run").exists()


def test_a_minute_is_the_time_limit_and_another_can_be_asked_for() -> None:
    assert RunOptions().worker_timeout == 60.0
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match=r"worker_timeout[\s\S]*seconds > 0"):
            small(worker_timeout=seconds)


def test_a_run_that_was_too_slow_goes_on_with_a_longer_limit(tmp_path: Path) -> None:
    """No number hangs on the time limit, so it is the one option that may change on the way."""
    folder = tmp_path / "run"
    slow = partial(register_troubled, "nothing", tmp_path / "mark", seconds=1.5)
    words = options(num_steps=2, batch_size=4, total_timesteps=4, worker_timeout=1.0)
    train = ["train", *words, "--out", str(folder)]
    status, text = ended(*train, told=tmp_path / "told", before=slow)
    assert status == 2 and "gave no answer within 1 seconds" in text and "a longer `timeout`" in text
    resume = ["resume", str(folder), "--worker-timeout=20"]
    status, text = ended(*resume, told=tmp_path / "told", before=slow)
    assert status == 0, text
    status, text = ended("resume", str(folder), "--worker-timeout", "x", told=tmp_path / "told", before=slow)
    assert status == 2 and "`--worker-timeout`" in text and "a number" in text
