"""Studies on a card that is pretended, and on a real one."""

import sys
from pathlib import Path

import pytest
import torch

from latentpg import cli
from latentpg.studies import named_studies, run_study
from tests.learners.pretended_card import on_the_pretended_card
from tests.studies.pretended_card import SHRUNK, cases, shrunk

STUDIES = "tests.studies.pretended_card"
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics card")


def test_every_shipped_study_is_shrunk() -> None:
    assert SHRUNK.keys() == set(named_studies())


@pytest.mark.production
def test_nothing_is_made_elsewhere() -> None:
    assert "ok  snr" in on_the_pretended_card(STUDIES, "snr")


@pytest.mark.slow
@pytest.mark.production
def test_nothing_is_made_elsewhere_by_any_target_or_source() -> None:
    assert on_the_pretended_card(STUDIES).count("ok  ") == len(cases())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_a_study_says_that_there_is_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latentpg", "study", "snr", "--device", "cuda", "--out", str(tmp_path / "run")])
    assert cli.main() == cli.USAGE_ERROR
    assert "no graphics card" in capsys.readouterr().err and not any(tmp_path.iterdir())


@on_a_card
@pytest.mark.production
@pytest.mark.parametrize("name", named_studies())
def test_every_shipped_study_runs_on_a_card(name: str) -> None:
    study = shrunk(name)
    assert {each.cell.target for each in run_study(study, device="cuda").measured} == study.targets.keys()
