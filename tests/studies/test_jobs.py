"""A worker finds its piece of work without listing all others, of which there may be a million."""

import time
from dataclasses import replace

import pytest

from latentpg.studies import make_study, named_studies


@pytest.mark.parametrize("name", named_studies())
def test_a_job_is_what_the_list_of_jobs_has(name: str) -> None:
    study = make_study(name)
    jobs = study.jobs()
    for key in [*list(jobs)[:: max(1, len(jobs) // 25)], list(jobs)[-1]]:
        assert list(study.job(key)) == list(jobs[key])


def test_finding_one_does_not_list_the_others() -> None:
    study = make_study("quickstart")
    large = replace(study, axes={**study.axes, "num_particles": tuple(range(1, 2001))})
    key = list(large.jobs())[-1]
    start = time.process_time()
    for _ in range(10):
        large.job(key)
    found = (time.process_time() - start) / 10
    start = time.process_time()
    large.jobs()
    assert found < (time.process_time() - start) / 3


def test_a_key_that_is_no_job_is_no_job() -> None:
    with pytest.raises(KeyError):
        make_study("quickstart").job("gradient | nothing at all | num_particles=1")
