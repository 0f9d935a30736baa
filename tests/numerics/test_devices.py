"""Devices by name, and what is said where there is no graphics card."""

import pytest
import torch
from torch import nn

from latentpg.errors import OptionError
from latentpg.numerics.devices import CPU, checked_device, device_of, made_on


def test_a_card_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        OptionError, match=r"no graphics card.*\n.*is_available.*\n.*built for CUDA.*\n.*\n.*--device cpu"
    ):
        checked_device("cuda")


def test_more_workers_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("cuda", index=1) == torch.device("cuda", 1)
    with pytest.raises(OptionError, match=r"more workers on this machine than graphics cards\n.*at most 2\n.*worker 2"):
        checked_device("cuda", index=2)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(OptionError, match=r"unknown device\n.*cpu or cuda\n.*'gpu'"):
        checked_device("gpu")
    assert checked_device("cpu") == CPU


def test_a_module_is_where_its_tensors_are() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    only = nn.Module()
    only.register_buffer("mean", torch.zeros(1, device="meta"))
    assert device_of(only) == torch.device("meta")
    assert device_of(nn.Module()) == device_of(object()) == CPU


def test_what_is_made_inside_the_scope_is_there() -> None:
    with made_on(torch.device("meta")):
        assert torch.zeros(1).device.type == "meta"
    assert torch.zeros(1).device.type == "cpu"
