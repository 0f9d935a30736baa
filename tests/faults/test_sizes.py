"""Sizes that no memory has, by the command: one message, and nothing is left behind."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import ended, quick
from tests.training.runs import shortly, spelled

pytestmark = [
    pytest.mark.production,  # a forked process imports nothing anew
    pytest.mark.skipif(os.name != "posix", reason="limits of POSIX"),
]


def within(megabytes: int) -> Callable[[], None]:
    """Let a process have so much memory beyond what it has already."""

    def limit() -> None:
        quick()
        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20,) * 2)

    return limit


@pytest.mark.parametrize(
    ("algo", "options", "told"),
    [
        ("ppo", {"hidden": [20_000, 20_000]}, "not enough memory"),
        ("ppo", {"hidden": [2**40, 2**40]}, "not enough memory"),
        ("ppo", {"hidden": [2**62]}, "`hidden`"),
        ("ppo", {"num_components": 10**30, "policy": "mixture"}, "`num_components`"),
        ("ppo", {"batch_size": 10**30}, "`batch_size`"),
        ("ppo", {"eval_episodes": 2**62}, "`eval_episodes`"),
        ("ppo", {"num_envs": 2**31}, "`num_envs`"),
        ("reinforce", {"num_episodes": 10**30}, "`num_episodes`"),
        ("grpo", {"group_size": 2**62}, "`group_size`"),
    ],
    ids=str,
)
def test_what_no_memory_has_is_refused(algo: str, options: dict[str, object], told: str, tmp_path: Path) -> None:
    words = spelled(shortly(algo, **options))
    status, text = ended("train", *words, "--out", str(tmp_path / "run"), told=tmp_path / "told", before=within(600))
    assert status == 2 and told in text, text
    assert not (tmp_path / "run").exists()


def test_a_seed_may_be_any_number(tmp_path: Path) -> None:
    words = spelled(shortly("ppo", seed=10**30, total_timesteps=32))
    status, text = ended("train", *words, "--out", str(tmp_path / "run"), told=tmp_path / "told", before=quick)
    assert status == 0, text
