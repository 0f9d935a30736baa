"""Workers with a share of the rows learn what one process learns from all of them."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.learners import AgentOptions, LearningFault
from latentpg.learners.descent import Descent, step_together
from latentpg.learners.parallel import (
    ALONE,
    Group,
    agreed,
    mean_of,
    metrics_over,
    moments_over,
    share_of,
    standardized_over,
    stream_of,
    texts_over,
    together,
    total_over,
)
from latentpg.learners.workers import is_launched, joined
from latentpg.numerics.baselines import standardized
from latentpg.rollout import RunningMoments, StepCollector, collect_episodes, collect_groups, make_envs
from tests.learners import crew
from tests.learners.crew import (
    CASES,
    Case,
    a2c_case,
    grpo_case,
    in_threads,
    learn_alone,
    learn_in_threads,
    online_case,
    ppo_case,
    ppo_of_episodes_case,
    reinforce_case,
)
from tests.learners.small import policy_for

ROOT = Path(__file__).parents[2]
VARIANTS: Mapping[str, Case] = {
    "ppo, not normalised, value clip": ppo_case(normalize_advantage=False, clip_range_vf=0.2),
    "ppo, stopped by its divergence": ppo_case(target_kl=1e-5, num_epochs=4),
    "ppo, entropy in closed form": ppo_case(AgentOptions(batch_size=24, entropy_coefficient=0.1), "plain"),
    "ppo, whole episodes": ppo_of_episodes_case(normalize_reward=True, target_kl=1e-5),
    "ppo, held": ppo_of_episodes_case(latent="episode", normalize_advantage=False),
    "a2c, n steps": a2c_case(n_step=3, discount_gradient=True),
    "online": online_case(),
    "online, traces": online_case(actor_trace_decay=0.5, critic_trace_decay=0.5),
    "reinforce, critic": reinforce_case(baseline="state-value", value_epochs=2),
    "reinforce, batch mean, total": reinforce_case(baseline="batch-mean", credit="total", aggregation="sequence"),
    "reinforce, least variance": reinforce_case(baseline="variance-optimal", aggregation="constant"),
    "reinforce, ratios by decision": reinforce_case(
        ratio="per-decision", discounting="from-start", num_epochs=2, normalize_advantage=True
    ),
    "grpo, sequences": grpo_case(ratio="sequence", aggregation="sequence"),
    "grpo, held": grpo_case(latent="episode", advantage="rloo"),
    "grpo, pooled": grpo_case(credit="pooled-to-go", gamma=0.9, advantage="batch-std"),
    "grpo, to go": grpo_case(credit="reward-to-go", advantage="batch-std", aggregation="constant", target_kl=1e-5),
}


EXACTLY = {
    f"{group}/{name}"
    for group, names in {
        "rollout": ("ep_rew_mean", "ep_len_mean", "episodes"),
        "train": ("grad_norm", "value_grad_norm", "guide_grad_norm", "epochs", "stopped_early", "skipped",
                  "explained_variance", "zero_variance_groups"),
    }.items()
    for name in names
}  # fmt: skip
"""Metrics that are those of one process; the others are means over workers of what each has for itself."""


@pytest.fixture(autouse=True)
def nothing_is_played_yet() -> None:
    crew._played.clear()


def differs(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what differs by more than float32's sums in another order do: 1e-6 of the largest of its kind.

    Optimisers' moments may differ by ten times that: they are of gradients, which are differences of what was summed.
    """
    assert set(first) == set(second)
    largest: dict[str, float] = {}
    for name, value in first.items():
        largest[kind_of(name)] = max(largest.get(kind_of(name), 0.0), float(value.abs().max()))
    off = {name: float((value.double() - second[name].double()).abs().max()) for name, value in first.items()}
    allowed = {name: (1e-5 if "exp_avg" in name else 1e-6) * largest[kind_of(name)] for name in off}
    return {name: each for name, each in off.items() if not each <= allowed[name]}


def kind_of(name: str) -> str:
    """Tell parameters, statistics, and each moment of each optimiser apart."""
    parts = [*name.split("."), ""]
    return name if "encoder" in name else ".".join(parts[: 3 if parts[1] in ("model", "guide") else 2])


def check(case: Case) -> None:
    alone = learn_alone(case)
    crew._played.clear()
    first, second = learn_in_threads(case)
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert not differs(alone.state, first.state)
    assert first.metrics == second.metrics
    assert set(alone.metrics) == set(first.metrics)
    for name in alone.metrics.keys() & EXACTLY:
        assert math.isclose(alone.metrics[name], first.metrics[name], rel_tol=1e-5), name


@pytest.mark.parametrize("name", CASES)
def test_workers_learn_what_one_process_does(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_and_so_they_do_with_every_option_that_asks_the_others(name: str) -> None:
    check(VARIANTS[name])


# Processes, as torchrun starts them.


def launch(words: list[str], size: int = 2) -> list[subprocess.Popen[str]]:
    """Start processes that find each other, each one's output for itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def test_so_do_processes(tmp_path: Path) -> None:
    """Two processes over gloo: PPO, A2C, REINFORCE and GRPO, two updates each."""
    workers = launch(["-m", "tests.learners.crew", str(tmp_path)])
    alone = {}
    for name, case in CASES.items():
        crew._played.clear()
        alone[name] = learn_alone(case).state
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, out + err
    for name, state in alone.items():
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(first[each], second[each]) for each in first)
        assert not differs(state, first)


WAITING = """
import sys, time
import torch
from latentpg.learners.faults import WorkerFault
from latentpg.learners.workers import joined
with joined(timeout=float(sys.argv[1])) as group:
    print(float(group.sum(torch.ones(()))), flush=True)
    if group.rank == 1:
        time.sleep(60)
    try:
        group.sum(torch.ones(()))
    except WorkerFault as fault:
        print(fault, flush=True)
        sys.exit(7)
"""


@pytest.mark.parametrize("how", ["killed", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_lost_worker_is_noticed_and_nobody_waits_for_ever(how: str) -> None:
    first, second = launch(["-c", WAITING, "60" if how == "killed" else "3"])
    try:
        assert second.stdout is not None and first.stdout is not None
        assert (second.stdout.readline(), first.stdout.readline()) == ("2.0\n", "2.0\n")
        if how == "killed":
            os.kill(second.pid, signal.SIGKILL)
        start = time.monotonic()
        out, err = first.communicate(timeout=40)
        assert first.returncode == 7, out + err
        assert time.monotonic() - start < 20
        assert "worker 0 of 2 waited for the others in vain" in out and "latentpg resume" in out
    finally:
        second.kill()
        second.communicate()


def test_a_process_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not is_launched()
    with joined() as group:
        assert group is ALONE
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not is_launched()


# What is asked of the others, by hand.


def test_a_mean_counts_a_worker_as_often_as_it_has_rows() -> None:
    def work(group: Group) -> list[Tensor]:
        mine = (
            [torch.tensor([[1.0], [5.0]]), torch.tensor(2.0)]
            if group.rank == 0
            else [torch.zeros(2, 1), torch.ones(())]
        )
        return mean_of(group, mine, 3 if group.rank == 0 else 1)

    for found in in_threads(work):
        assert found[0].tolist() == [[0.75], [3.75]] and found[1].item() == 1.75  # (3 * 2 + 1) / 4


def test_rows_of_all_workers_are_joined_in_their_order() -> None:
    def work(group: Group) -> tuple[Tensor, Tensor]:
        mine = torch.ones(2, 3) if group.rank == 0 else torch.full((1, 2), 2.0)
        every = together(group, mine)
        return every.rows, every.mine(every.rows)

    (rows, first), (same, second) = in_threads(work)
    assert rows.tolist() == same.tolist() == [[1, 1, 1], [1, 1, 1], [2, 2, 0]]
    assert first.tolist() == [[1, 1, 1]] * 2 and second.tolist() == [[2, 2, 0]]


def test_advantages_are_standardised_over_all_rows() -> None:
    rows = torch.randn(7) * 3 + 100
    found = in_threads(lambda group: standardized_over(group, rows[:2] if group.rank == 0 else rows[2:]))
    assert torch.allclose(torch.cat(found), standardized(rows), rtol=0, atol=2e-5)
    equal = in_threads(lambda group: standardized_over(group, torch.full((2,), 1e6)))
    assert torch.cat(equal).tolist() == [0.0] * 4
    apart = in_threads(lambda group: standardized_over(group, torch.full((2,), float(group.rank))))
    assert apart[0][0] == -apart[1][0] and abs(float(apart[1][0]) - math.sqrt(3) / 2) < 1e-6


def test_moments_are_those_of_all_rows() -> None:
    rows = torch.randn(9, 2)
    found = in_threads(lambda g: moments_over(g, RunningMoments.of_rows(rows[:4] if g.rank == 0 else rows[4:])))
    whole = RunningMoments.of_rows(rows)
    for each in found:
        assert (
            each.count == 9 and torch.allclose(each.mean, whole.mean) and torch.allclose(each.variance, whole.variance)
        )


def test_numbers_texts_and_votes() -> None:
    def work(group: Group) -> tuple[float, bool, bool, list[str]]:
        first = group.rank == 0
        return (
            total_over(group, 2**40 + group.rank),
            agreed(group, first),
            agreed(group, False),
            texts_over(group, "über" if first else ""),
        )

    assert in_threads(work) == [(2.0**41 + 1, True, False, ["über", ""])] * 2


def test_metrics_are_means_by_rows_and_episodes_are_counted() -> None:
    told = [
        {
            "train/value_loss": 1.0,
            "rollout/ep_rew_mean": 10.0,
            "rollout/episodes": 1.0,
            "train/explained_variance": 0.5,
        },
        {"train/value_loss": 4.0, "rollout/ep_rew_mean": 40.0, "rollout/episodes": 2.0},
    ]
    first, second = in_threads(lambda group: metrics_over(group, told[group.rank], [100, 200][group.rank]))
    assert (
        first
        == second
        == {
            "train/value_loss": 3.0,
            "rollout/ep_rew_mean": 30.0,
            "rollout/episodes": 3.0,
            "train/explained_variance": 0.5,
        }
    )


def test_shares_are_neighbours_and_too_few_are_refused() -> None:
    assert in_threads(lambda group: share_of(group, 5, what="groups")) == [range(2), range(2, 5)]
    with pytest.raises(OptionError, match=r"fewer groups than workers.*\n.*at least 2 groups\n.*1"):
        in_threads(lambda group: share_of(group, 1, what="groups"))


def test_streams_are_apart() -> None:
    assert in_threads(lambda group: stream_of(group, "update 3")) == ["update 3 of worker 0", "update 3 of worker 1"]


def test_a_bad_gradient_of_one_worker_moves_none() -> None:
    """All refuse it alike: otherwise those that did not would wait for the one that did."""

    def work(group: Group) -> tuple[str, float]:
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        descent = Descent({"weight": weight}, learning_rate=0.1, group=group)
        with pytest.raises(LearningFault) as caught:
            descent.step((weight * (float("nan") if group.rank == 1 else 1.0)).sum())
        critic = Descent({"value": torch.nn.Parameter(torch.tensor([1.0]))}, learning_rate=0.1, group=group)
        bad = critic.parameters[0].sum() * (float("inf") if group.rank == 0 else 1.0)
        with pytest.raises(LearningFault):
            step_together((descent, weight.sum()), (critic, bad))
        return str(caught.value), float(weight.detach()) + float(critic.parameters[0].detach())

    (text, first), (other, second) = in_threads(work)
    assert "the loss is not finite" in text and text == other and first == second == 2.0


# Environments: each worker plays the members that one process would have played.


def test_workers_play_the_members_of_one_process() -> None:
    whole = StepCollector(make_envs("CartPole-v1", 4), seed=5).state()
    parts = [StepCollector(make_envs("CartPole-v1", 2), seed=5, first=2 * rank, members=4).state() for rank in range(2)]
    assert torch.equal(torch.cat([part.obs for part in parts]), whole.obs)
    assert torch.equal(torch.cat([part.reset_seed for part in parts]), whole.reset_seed)


def test_members_of_different_workers_never_have_a_seed_in_common() -> None:
    policy = policy_for(envs := make_envs("CartPole-v1", 2))
    seeds: list[set[int]] = []
    for rank in range(2):
        collector, mine = StepCollector(envs, seed=5, first=2 * rank, members=4), set()
        for _ in range(40):
            collector.collect(policy, num_steps=4)
            mine |= set(collector.state().reset_seed.tolist())
        seeds.append(mine)
    assert min(map(len, seeds)) > 8 and not seeds[0] & seeds[1]


def test_workers_play_the_episodes_and_groups_of_one_process() -> None:
    policy = policy_for(envs := make_envs("CartPole-v1", 2))
    limits = {"max_steps": 5, "on_max_steps": "truncate"}

    def starts(share: range | None) -> tuple[Tensor, Tensor]:
        episodes = collect_episodes(envs, policy, num_episodes=3, seed=4, share=share, **limits)  # type: ignore[arg-type]
        groups = collect_groups(envs, policy, num_groups=3, group_size=2, seed=4, share=share, **limits)  # type: ignore[arg-type]
        return episodes.transitions.obs[episodes.step == 0], groups.transitions.obs[groups.step == 0]

    whole, first, second = starts(None), starts(range(1)), starts(range(1, 3))
    for place in range(2):
        assert torch.equal(torch.cat([first[place], second[place]]), whole[place])
