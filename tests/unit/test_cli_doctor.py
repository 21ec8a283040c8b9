"""`doctor` says who runs each op and why no faster one does, and fails where an op is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qarvd.cli import doctor, main
from qarvd.errors import DeviceError
from qarvd.ops import library, self_test
from qarvd.ops.backends.base import Backend
from qarvd.ops.backends.registry import Standing, choose, who_runs
from qarvd.ops.values import Tokens
from qarvd.ops.weight import QuantizedWeight

CPU = torch.device("cpu")
Lines = Callable[[], tuple[int, dict[str, str]]]
OPS = ("quantize_activation", "decode_weight", "dual_scale_linear", "kv_append", "kv_attention")


@pytest.fixture
def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Run it; gives the exit code, and what it printed by the first words of each line."""

    def run() -> tuple[int, dict[str, str]]:
        code = main(["doctor", "--cache", str(tmp_path)])
        printed = capsys.readouterr().out.splitlines()
        return code, {head.strip(): rest for head, _, rest in (line.partition("  ") for line in printed)}

    return run


def test_a_sound_machine_passes_and_every_op_has_a_backend(lines: Lines) -> None:
    code, said = lines()
    assert code == 0 and "All self-tests passed." in said
    for op in OPS:
        assert "FAILED" not in said[op] and said[op].split()[0] in ("cpu", "reference", "cuda")
    assert "cuda: the tensors are on cpu" in said["kv_attention"]
    assert torch.__version__ in said["torch"] and {"driver", "NVRTC", "prebuilt", "compiled"} <= set(said)


def test_a_wrong_op_fails(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    right = library.kv_attention
    monkeypatch.setattr(library, "kv_attention", lambda *args: right(*args) * 1.1)
    code, said = lines()
    assert code == 1 and "FAILED" in said["kv_attention"] and "FAILED" not in said["kv_append"]
    assert any(line.startswith("SELF-TESTS FAILED") for line in said)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DeviceError("The driver said no."), "The driver said no."),
        (RuntimeError("CUDA error\nlong story"), "CUDA error"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_an_op_that_raises_fails_with_its_first_line(
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(library, "quantize_activation", broken)
    code, said = lines()
    assert code == 1
    assert f"FAILED: {told}" in said["quantize_activation"]


@pytest.mark.parametrize("share", [1.01, math.inf, math.nan])
def test_an_error_beyond_the_tolerance_and_no_number_fail(share: float) -> None:
    right, said = doctor._tested(lambda device, dtype: share, CPU, torch.float32)
    assert not right and "FAILED" in said


def test_every_op_that_has_a_backend_has_a_check() -> None:
    assert set(self_test.checks()) == set(who_runs(CPU)) == set(OPS)


def wrong_scale(tokens: Tokens) -> Tokens:
    return tokens._replace(scale=tokens.scale * 1.001)


def wrong_sum(tokens: Tokens) -> Tokens:
    return tokens._replace(sums=tokens.sums + 1)


@pytest.mark.parametrize("spoil", [wrong_scale, wrong_sum])
def test_the_check_of_activations_sees_a_small_fault(
    spoil: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = library.quantize_activation
    monkeypatch.setattr(library, "quantize_activation", lambda *args: spoil(call(*args)))
    assert self_test.checks()["quantize_activation"](CPU, torch.float32) > 1


def shifted_code(codes: Tensor) -> Tensor:
    return codes.clone().index_fill_(0, torch.tensor([3]), 1)


def test_the_check_of_decoding_sees_one_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    call = library.decode_weight
    monkeypatch.setattr(library, "decode_weight", lambda weight: shifted_code(call(weight)))
    assert self_test.checks()["decode_weight"](CPU, torch.float32) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_of_linears_allows_half_a_unit_and_no_more(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = self_test.checks()["dual_scale_linear"]
    assert 0 < check(CPU, dtype) <= 1

    def without_zero_points(weight: QuantizedWeight) -> Backend:
        backend = choose(weight)
        return replace(backend, prepare=lambda weight: backend.prepare(replace(weight, zero=None)))

    monkeypatch.setattr(self_test, "choose", without_zero_points)
    assert check(CPU, dtype) > 1


def test_the_check_of_attention_sees_a_lost_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    call = library.kv_attention
    monkeypatch.setattr(
        library,
        "kv_attention",
        lambda query, ring, length, offset, sink, new: call(query, ring, length, None, sink, new),
    )
    for dtype in (torch.float32, torch.float16):
        assert self_test.checks()["kv_attention"](CPU, dtype) > 1


def test_a_card_is_described_with_the_origin_of_its_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(doctor, "load", lambda *_: "the driver is too old")
    monkeypatch.setattr(doctor, "_describe", lambda device: "A card")
    monkeypatch.setattr(doctor, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(doctor, "checks", lambda: {"op": lambda device, dtype: 0.0})
    monkeypatch.setattr(
        doctor, "who_runs", lambda where: {"op": [Standing("cuda", "too old"), Standing("reference", None)]}
    )
    assert doctor.examine(card, tmp_path)
    said = capsys.readouterr().out
    assert "cuda:0: A card\nkernels: none: the driver is too old\n" in said
    assert "reference  exact      cuda: too old" in said


@pytest.mark.parametrize(("cuda", "expected"), [(None, "none is needed"), ("12.8", "can't be loaded")])
def test_a_driver_is_missed_only_by_a_torch_that_would_use_it(
    cuda: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise DeviceError("The NVIDIA driver's library can't be loaded.")

    monkeypatch.setattr(doctor, "Driver", missing)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert expected in doctor._driver()


@pytest.mark.parametrize("known", [True, False])
def test_a_user_without_a_home_folder_is_told_so(
    known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path) if known else "")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert (f"0 kept in {tmp_path}" in said) == known and (
        "kept nowhere, since you have no home folder" in said
    ) != known


class Kitchen:
    """A comfy-kitchen with these backends available."""

    def __init__(self, *available: str) -> None:
        self.registry, self.available = self, available

    def list_backends(self) -> dict[str, dict[str, object]]:
        names = ("eager", "cuda", "hip")
        return {n: {"available": n in self.available, "unavailable_reason": f"no {n} here"} for n in names}


KITCHENS: dict[str, tuple[object, str | None, str]] = {
    "a card and CUDA 13": (Kitchen("eager", "cuda"), "13.0", "with its fast kernels (cuda)"),
    "a card and CUDA 12.8": (
        Kitchen("eager", "cuda"),
        "12.8",
        "without its fast kernels: ComfyUI wants a torch built for",
    ),
    "an AMD card": (Kitchen("eager", "hip"), None, "with its fast kernels (hip)"),
    "no card": (Kitchen("eager"), None, "without its fast kernels: no cuda here"),
    "another one than we know": (object(), "13.0", "9.9.9 can't be used: 'object' object has no attribute 'registry'"),
}


@pytest.mark.parametrize("case", KITCHENS)
def test_whether_comfyui_would_use_its_fast_kernels_is_told_in_a_line(
    case: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen, cuda, expected = KITCHENS[case]
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "9.9.9")
    monkeypatch.setattr(doctor, "import_module", lambda name: kitchen)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    said = lines()[1]["kitchen"]
    assert "comfy-kitchen 9.9.9" in said and expected in said


def test_a_kitchen_that_is_not_there_or_does_not_import_is_told_so(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    def broken(name: str) -> object:
        raise OSError("libcudart.so.13: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(doctor.metadata, "version", missing)
        assert "comfy-kitchen is not installed" in lines()[1]["kitchen"]
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "9.9.9")
    monkeypatch.setattr(doctor, "import_module", broken)
    assert lines()[1]["kitchen"].endswith("can't be used: libcudart.so.13: cannot open shared object file")


@pytest.mark.parametrize(
    ("cuda", "hip", "expected"),
    [("12.8", None, "built for CUDA 12.8"), (None, "6.4", "built for ROCm 6.4"), (None, None, "built without CUDA")],
)
def test_the_build_of_torch_is_told(
    cuda: str | None, hip: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert doctor.about(tmp_path)["torch"] == f"{torch.__version__}, {expected}"
