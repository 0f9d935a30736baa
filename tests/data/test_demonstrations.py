"""Demonstrations: what they are made of, and what is refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from latentpg.data import DataError, Demonstrations
from tests.data.files import ACTION, OBS, REWARD


def demos(**changes: object) -> Demonstrations:
    given = {"obs": OBS, "action": ACTION, "mode": [1, 0], "reward": REWARD, "dt": [0.1, 0.2]} | changes
    return Demonstrations.from_episodes(**given)  # type: ignore[arg-type]


def with_entry(values: list[np.ndarray], episode: int, step: int, entry: float) -> list[np.ndarray]:
    changed = [each.copy() for each in values]
    changed[episode][step] = entry
    return changed


def test_episodes_become_rows() -> None:
    made = demos(mode_names=("left", "right"))
    assert (made.num_episodes, made.num_rows) == (2, 5)
    assert made.episode.tolist() == [0, 0, 0, 1, 1]
    assert made.step.tolist() == [0, 1, 2, 0, 1]
    assert made.lengths.tolist() == [3, 2]
    assert made.starts.tolist() == [0, 3]
    assert made.obs.dtype == made.action.dtype == torch.float32
    assert made.obs[:, 0].tolist() == [0, 2, 4, 10, 12]
    assert made.reward is not None and made.reward.tolist() == [0, 0, 1, 0, 2]


def test_take_gives_episodes_in_the_order_asked_for() -> None:
    taken = demos().take(torch.tensor([1, 0, 1]))
    assert taken.episode.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert taken.obs[:, 0].tolist() == [10, 12, 0, 2, 4, 10, 12]
    assert taken.action[:, 0].tolist() == [3.5, 4.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert taken.mode is not None and taken.mode.tolist() == [0, 1, 0]
    assert taken.dt is not None and taken.dt.tolist() == pytest.approx([0.2, 0.1, 0.2])
    assert taken.reward is not None and taken.reward.tolist() == [0, 2, 0, 0, 1, 0, 2]


def test_integer_actions_stay_integers_in_another_type() -> None:
    made = demos(action=[np.array([1, 2, 0]), np.array([0, 1])]).to(torch.float64)
    assert made.action.tolist() == [1, 2, 0, 0, 1] and made.action.dtype == torch.int64
    assert made.obs.dtype == torch.float64
    assert made.dt is not None and made.dt.dtype == torch.float64


@pytest.mark.parametrize("entry", [np.nan, np.inf, 1e300], ids=["nan", "inf", "too large for float32"])
@pytest.mark.parametrize("name", ["obs", "action", "reward"])
def test_what_is_not_finite_is_named_by_episode_and_step(name: str, entry: float) -> None:
    values = {"obs": OBS, "action": ACTION, "reward": REWARD}[name]
    with pytest.raises(DataError, match=rf"`{name}` has NaN or infinite[\s\S]*episode 1, step 1\n"):
        demos(**{name: with_entry(values, 1, 1, entry)})
    twice = with_entry(with_entry(values, 0, 2, entry), 1, 0, entry)
    with pytest.raises(DataError, match=r"episode 0, step 2 \(2 such steps\)"):
        demos(**{name: twice})


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no episodes": (lambda: demos(obs=[], action=[], reward=None, mode=None, dt=None), r"one array an episode"),
    "one part has fewer": (lambda: demos(action=ACTION[:1]), r"'action': 1"),
    "an empty episode": (lambda: demos(obs=[OBS[0], OBS[1][:0]], action=[ACTION[0], ACTION[1][:0]]), r"episode 1 is e"),
    "other lengths": (lambda: demos(action=[ACTION[0][:1], ACTION[1]]), r"episode 0 have different lengths"),
    "the last observation too": (
        lambda: demos(action=[ACTION[0][:2], ACTION[1]]),
        r"after the last action[\s\S]*fix: +obs\[:-1\]",
    ),
    "ragged": (lambda: demos(obs=[[[1.0, 2.0], [3.0], [4.0]], OBS[1]]), r"`obs` of episode 0 is ragged"),
    "other sizes": (lambda: demos(obs=[OBS[0], OBS[1][:, :1]]), r"`obs` of episode 1 is not like[\s\S]*'T', 2"),
    "other kinds": (lambda: demos(action=[ACTION[0], ACTION[1].astype(int)]), r"`action` of episode 1 is not like"),
    "text": (lambda: demos(action=[np.array([["a"]] * 3), ACTION[1]]), r"holds no numbers"),
    "integer observations": (lambda: demos(obs=[each.astype(int) for each in OBS]), r"`obs` is not floating-point"),
    "images": (lambda: demos(obs=[each[:, None] for each in OBS]), r"rows that do not fit each other"),
    "a mode too few": (lambda: demos(mode=[0]), r"`mode`[\s\S]*\[E=2\]"),
    "a negative mode": (lambda: demos(mode=[0, -1]), r"integers >= 0"),
    "a name too few": (lambda: demos(mode_names=("only",)), r"1 names, mode 1"),
    "names of nothing": (lambda: demos(mode=None, mode_names=("a",)), r"a name for each number"),
    "no time at all": (lambda: demos(dt=[0.1, 0.0]), r"seconds > 0"),
}


@pytest.mark.production
@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build()


ROWS: dict[str, Any] = {"obs": torch.zeros(3, 2), "action": torch.zeros(3, 1), "episode": torch.tensor([0, 0, 1])}


@pytest.mark.production
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode": torch.tensor([0, 0, 2])}, r"2 in row 2[\s\S]*an empty episode"),
        ({"episode": torch.tensor([0, 1, 0])}, r"0 in row 2"),
        ({"episode": torch.tensor([1, 1, 1])}, r"1 in row 0"),
        ({"episode": torch.tensor([0, 0])}, r"do not fit each other"),
        ({"action": torch.zeros(3, 0)}, r"do not fit each other"),
        ({"action": torch.zeros(3, 1, 1)}, r"do not fit each other"),
        ({"obs": torch.zeros(0, 2), "action": torch.zeros(0, 1), "episode": ROWS["episode"][:0]}, r"no steps"),
        ({"obs": torch.zeros(3, 2, dtype=torch.float16)}, r"float32 or float64[\s\S]*float16"),
        ({"action": torch.zeros(3, 1, dtype=torch.float64)}, r"`action` has another type[\s\S]*float64"),
        ({"action": torch.zeros(3, 1, dtype=torch.int32)}, r"or torch.int64"),
        ({"reward": torch.zeros(2)}, r"`reward`[\s\S]*\[M=3\]"),
        ({"reward": torch.zeros(3, dtype=torch.float64)}, r"`reward` has another type"),
    ],
)
def test_rows_are_held_against_each_other(changes: dict[str, Any], message: str) -> None:
    Demonstrations(**ROWS)
    with pytest.raises(DataError, match=message):
        Demonstrations(**(ROWS | changes))
