"""Print which operations take a step's time, and what a step costs at B = 1: `python -m benchmarks.where_time_goes`."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import NUM_PARTICLES, make_case
from benchmarks.measure import SEED, compare
from latentpg.estimators import Guide, PosteriorIS

STEPS = 50
SHOWN = 8


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    estimator, case = PosteriorIS(NUM_PARTICLES, Guide()), make_case("Gaussian latent, Box action")
    for _ in range(5):
        case.by_library(estimator)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            case.by_library(estimator)
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:SHOWN]:
        print(f"{event.key:24} {100 * event.self_cpu_time_total / total:5.1f} %  {event.count // STEPS:3} calls a step")
    one_row = make_case("Gaussian latent, Box action", rows=1)
    functions = {"by hand": one_row.by_hand, "library": lambda: one_row.by_library(estimator)}
    for name, seconds in compare(functions, baseline="by hand", rounds=500).seconds.items():
        print(f"B = 1, {name}: {1e3 * seconds:.2f} ms a step")


if __name__ == "__main__":
    main()
