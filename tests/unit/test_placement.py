"""A device is chosen by name among those that are here; by itself only one that the kernels are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qarvd.checkpoint.model import Model
from qarvd.errors import SettingError
from qarvd.jobs import placement
from qarvd.jobs.placement import devices, pick_device, place
from qarvd.ops.self_test import compute_dtype


def here(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int) -> None:
    """A machine with so many accelerators."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count if kind == "cuda" else 0)
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("kind", "count", "names", "chosen"),
    [
        (None, 0, ["cpu"], {"auto": "cpu", "cpu": "cpu"}),
        (
            "cuda",
            2,
            ["cuda:0", "cuda:1", "cpu"],
            {"auto": "cuda:0", "cuda": "cuda:0", "cuda:1": "cuda:1"},
        ),
        ("mps", 1, ["mps:0", "cpu"], {"auto": "cpu", "mps": "mps:0", "mps:0": "mps:0"}),
        ("xpu", 2, ["xpu:0", "xpu:1", "cpu"], {"auto": "cpu", "xpu": "xpu:0", "xpu:1": "xpu:1"}),
    ],
)
def test_devices_are_found_by_name(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int, names: list[str], chosen: dict[str, str]
) -> None:
    here(monkeypatch, kind, count)
    assert [str(device) for device in devices()] == names
    assert {name: str(pick_device(name)) for name in chosen} == chosen


def test_a_device_that_is_not_here_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "mps", 1)
    with pytest.raises(SettingError, match=r"no device 'cuda' here; choose from cpu, auto, mps:0, mps\."):
        pick_device("cuda")


@pytest.mark.parametrize("cuda", ["13.0", None], ids=["CUDA", "ROCm"])
def test_a_card_that_our_kernels_refuse_is_warned_of_where_they_could_run(
    cuda: str | None, shared_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "load_kernels", lambda device: "the driver is too old")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    place(replace(shared_model, tree=torch.nn.Identity()), torch.device("cuda"))
    told = (
        "The CUDA kernels can't be used: the driver is too old. Other code runs instead; `python -m qarvd doctor` says"
    )
    assert caplog.text.count(told) == (1 if cuda else 0) == len(caplog.records)


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("cpu", None, torch.float32),
        ("cuda:0", (8, 6), torch.bfloat16),
        ("cuda:0", (7, 5), torch.float16),
        ("mps:0", None, torch.bfloat16),
    ],
)
def test_self_tests_compute_in_what_models_do(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(torch.device(name)) == dtype
