"""What keeps kernels from a card for now, such as full memory, is not remembered; what does for good, is."""

from __future__ import annotations

import pytest
import torch

from qarvd.ops.cuda import device

from .fake_card import CARD, FakeNvrtc, Machine, origin

FULL = "The CUDA driver could not load the kernels on device 0: out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)"


@pytest.mark.parametrize("full", ["cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuFuncLoad"])
def test_memory_that_torch_holds_for_later_is_given_back_before_a_card_counts_as_full(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    machine.driver.fail(full, 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: machine.driver.fail(full, 0))
    assert device.refuses(CARD) is None
    modules = machine.driver.asked("cuModuleLoad", "cuModuleUnload")
    assert len(modules) == {"cuDevicePrimaryCtxRetain": 1, "cuModuleLoadData": 2, "cuFuncLoad": 3}[full]


def test_a_full_card_refuses_for_now_and_is_asked_again_after_a_pause(machine: Machine) -> None:
    machine.driver.fail("cuModuleLoadData", 2)
    machine.compilers = (FakeNvrtc(trouble="not to be asked"),)
    reason = device.refuses(CARD)
    assert reason == FULL and isinstance(reason, device.ForNow) and machine.emptied == 1
    machine.driver.lines()
    machine.driver.fail("cuModuleLoadData", 0)
    for _ in range(1000):  # a stream's calls, in less than the pause
        assert device.refuses(CARD) is reason
    assert machine.driver.lines() == [] and machine.emptied == 1
    machine.now += device.PAUSE
    assert origin(device.load(CARD)) == "prebuilt for sm_86 with NVRTC 12.9"


def test_a_card_that_stays_full_is_asked_once_a_pause(machine: Machine) -> None:
    machine.driver.fail("cuModuleLoadData", 2)
    for tried in range(1, 4):
        for _ in range(2):
            assert isinstance(device.refuses(CARD), device.ForNow)
        assert machine.emptied == tried
        machine.now += device.PAUSE


def test_what_was_compiled_for_a_full_card_is_not_compiled_again(machine: Machine) -> None:
    compiler = FakeNvrtc()
    machine.capability, machine.compilers = (8, 7), (compiler,)
    machine.driver.fail("cuFuncLoad", 2)
    assert isinstance(device.refuses(CARD), device.ForNow)
    machine.driver.fail("cuFuncLoad", 0)
    machine.now += device.PAUSE
    assert origin(device.load(CARD)) == (
        "compiled for sm_87 with NVRTC 12.9, not kept (no kernels are prebuilt for compute capability 8.7)"
    )
    assert compiler.compiled == 1


def test_a_full_card_keeps_nothing_of_what_was_loaded(machine: Machine) -> None:
    machine.driver.fail("cuFuncLoad", 2)
    assert isinstance(device.refuses(CARD), device.ForNow)
    modules = machine.driver.asked("cuModuleLoad", "cuModuleUnload")
    assert [line.split()[0] for line in modules] == ["cuModuleLoadData", "cuModuleUnload"] * 2
    assert machine.driver.library.fake_depth() == 0


@pytest.mark.parametrize(("function", "code"), [("cuInit", 802), ("cuModuleLoadData", 900), ("cuCtxPushCurrent", 46)])
def test_other_errors_that_may_pass_are_not_kept_either(machine: Machine, function: str, code: int) -> None:
    machine.driver.fail(function, code)
    assert isinstance(device.refuses(CARD), device.ForNow) and machine.emptied == 0
    machine.driver.fail(function, 0)
    machine.now += device.PAUSE
    assert device.refuses(CARD) is None


def test_nothing_is_loaded_while_a_graph_is_captured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    reason = device.refuses(CARD)
    assert isinstance(reason, device.ForNow) and reason.startswith("a CUDA graph is being captured")
    assert machine.driver.lines() == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    loaded = device.load(CARD)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert device.load(CARD) is loaded


def test_a_card_that_is_lost_to_the_process_is_offered_nothing_more(machine: Machine) -> None:
    machine.driver.fail("cuModuleLoadData", 716)
    machine.compilers = (compiler := FakeNvrtc(),)
    assert device.refuses(CARD) == (
        "The CUDA driver could not load the kernels on device 0: misaligned address (CUDA_ERROR_MISALIGNED_ADDRESS, "
        "716); earlier work on the card failed, and only a new process can use the card again"
    )
    assert compiler.compiled == 0
