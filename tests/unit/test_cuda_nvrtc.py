"""NVRTC is found wherever it lies, makes the same cubin each time, and says in a sentence what it can't; the package's
own cubins are fresh."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qarvd.errors import DeviceError
from qarvd.ops.cuda import cubins, nvrtc
from qarvd.ops.cuda.cubins import SERVES
from qarvd.ops.cuda.nvrtc import Candidate, Nvrtc, candidates
from qarvd.ops.cuda.source import Source, read

SMALL = Source(
    {
        "kernels.cu": '#include "scale.cuh"\nextern "C" __global__ void twice(Numbers p) { *p.x *= FACTOR; }',
        "scale.cuh": '#pragma once\n#include "numbers.cuh"\nconstexpr float FACTOR = 2;',
        "numbers.cuh": "#pragma once\nstruct Numbers { float* x; };",
    }
)


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    found = nvrtc.open_first(nvrtc.installed())
    if isinstance(found, str):
        pytest.skip(f'needs NVRTC, pip install -e ".[kernels]": {found}')
    return found


def test_headers_come_by_name_and_compiling_twice_gives_the_same_bytes(compiler: Nvrtc) -> None:
    first, second = (compiler.compile(SMALL, "sm_80") for _ in range(2))
    assert first == second and first.image.startswith(b"\x7fELF") and b"twice" in first.image
    assert first.pack() == second.pack()
    assert (first.architecture, first.source) == ("sm_80", SMALL.hash)
    assert first.compiler == compiler.name == "NVRTC {}.{}".format(*compiler.version)
    assert "sm_80" in compiler.architectures


def test_a_compile_error_is_a_sentence_with_the_first_lines_of_the_log(compiler: Nvrtc) -> None:
    broken = Source({**SMALL.files, "scale.cuh": '#include "numbers.cuh"\nconstexpr float FACTOR = two;'})
    with pytest.raises(DeviceError) as error:
        compiler.compile(broken, "sm_80")
    said = str(error.value)
    assert said.startswith(f"{compiler.name} can't compile the kernels for sm_80: scale.cuh(2): error: ")
    assert '"two" is undefined' in said and "\n" not in said


def test_an_unknown_architecture_and_a_missing_header_are_sentences(compiler: Nvrtc) -> None:
    with pytest.raises(DeviceError, match=r"for sm_1: NVRTC_ERROR_INVALID_OPTION\."):
        compiler.compile(SMALL, "sm_1")
    with pytest.raises(DeviceError, match=r"kernels\.cu\(1\): .*scale\.cuh"):
        compiler.compile(Source({"kernels.cu": SMALL.files["kernels.cu"]}), "sm_80")


def test_a_library_that_is_none_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    for name in ("libnvrtc.so.12", "libnvrtc-builtins.so.12.9"):
        (tmp_path / name).write_text("not a library")
    for builtins in (None, str(tmp_path / "libnvrtc-builtins.so.12.9")):
        reason = nvrtc.open_first([Candidate(str(tmp_path / "libnvrtc.so.12"), builtins, 12)])
        assert isinstance(reason, str) and "libnvrtc.so.12 can't be used" in reason


def test_a_foreign_library_is_passed_over() -> None:
    with pytest.raises(DeviceError, match="can't be used"):
        Nvrtc(Candidate("libm.so.6" if sys.platform == "linux" else "kernel32.dll", None, 12))


def test_where_there_is_no_nvrtc_that_is_said_without_a_list_of_names() -> None:
    reason = nvrtc.open_first([Candidate("libnvrtc.so.99", None, 99)])
    assert reason == "NVRTC is neither with torch, nor in the nvidia packages, nor on the system's path"


def test_prebuilt_kernels_are_of_the_source_that_is_shipped() -> None:
    wanted = read().hash
    stale = [
        reason
        for served in SERVES.values()
        for capability in served
        if isinstance(reason := cubins.shipped(capability, wanted), str)
    ]
    assert not stale, f"{stale}; run python tools/build_cubins.py"


def lay(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def laid_out(
    platform: str, root: Path, cuda: str | None = None, system: bool = False
) -> list[tuple[str, str | None, int | None]]:
    """Candidates relative to `root`, which holds `torch/lib` and `nvidia`."""

    def short(name: str | None) -> str | None:
        return Path(name).relative_to(root).as_posix() if name and Path(name).is_absolute() else name

    everything = candidates(platform, root / "torch/lib", [root / "nvidia"], cuda)
    return [
        (short(c.library) or "", short(c.builtins), c.major)
        for c in everything
        if system or Path(c.library).is_absolute()
    ]


def test_on_linux_torch_comes_before_the_packages_and_those_before_the_system(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "torch/lib/libtorch.so",
        "torch/lib/libnvrtc-672ee683.so.12",
        "torch/lib/libnvrtc-builtins.so.12.6",
        "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        "nvidia/cuda_nvrtc/lib/libnvrtc.alt.so.12",
        "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9",
        "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.alt.so.12.9",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
    )
    assert laid_out("linux", tmp_path, system=True) == [
        ("torch/lib/libnvrtc-672ee683.so.12", "torch/lib/libnvrtc-builtins.so.12.6", 12),
        ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9", 12),
        ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc-builtins.so.13.0", 13),
        ("libnvrtc.so.13", None, 13),
        ("libnvrtc.so.12", None, 12),
    ]


def test_on_windows_torch_comes_before_the_packages_and_those_before_the_system(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "torch/lib/nvrtc64_120_0.dll",
        "torch/lib/nvrtc64_120_0.alt.dll",
        "torch/lib/nvrtc-builtins64_129.dll",
        "nvidia/cuda_nvrtc/bin/nvrtc64_120_0.dll",
        "nvidia/cuda_nvrtc/bin/nvrtc-builtins64_128.dll",
        "nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll",
        "nvidia/cu13/bin/x86_64/nvrtc-builtins64_131.dll",
    )
    assert laid_out("win32", tmp_path, system=True) == [
        ("torch/lib/nvrtc64_120_0.dll", "torch/lib/nvrtc-builtins64_129.dll", 12),
        ("nvidia/cuda_nvrtc/bin/nvrtc64_120_0.dll", "nvidia/cuda_nvrtc/bin/nvrtc-builtins64_128.dll", 12),
        ("nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll", "nvidia/cu13/bin/x86_64/nvrtc-builtins64_131.dll", 13),
        ("nvrtc64_130_0.dll", None, 13),
        ("nvrtc64_120_0.dll", None, 12),
    ]


@pytest.mark.parametrize("platform", ["linux", "win32"])
@pytest.mark.parametrize(("cuda", "first"), [("12.9", 12), ("13.0", 13), (None, 12)])
def test_the_major_version_that_torch_was_built_for_comes_first(
    tmp_path: Path, platform: str, cuda: str | None, first: int
) -> None:
    lay(tmp_path, "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cu13/lib/libnvrtc.so.13")
    lay(tmp_path, "nvidia/cuda_nvrtc/bin/nvrtc64_120_0.dll", "nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll")
    majors = [major for *_, major in laid_out(platform, tmp_path, cuda)]
    assert sorted(str(m) for m in majors) == ["12", "13"] and majors[0] == first


def test_built_ins_are_of_the_librarys_version_and_the_newest(tmp_path: Path) -> None:
    lay(tmp_path, "torch/lib/libnvrtc.so.12", "torch/lib/libnvrtc.so.13")
    lay(tmp_path, *(f"torch/lib/libnvrtc-builtins.so.{version}" for version in ("12.8", "12.10", "13.0")))
    assert laid_out("linux", tmp_path) == [
        ("torch/lib/libnvrtc.so.13", "torch/lib/libnvrtc-builtins.so.13.0", 13),
        ("torch/lib/libnvrtc.so.12", "torch/lib/libnvrtc-builtins.so.12.10", 12),
    ]


def test_a_library_without_version_or_built_ins_is_tried_too(tmp_path: Path) -> None:
    lay(tmp_path, "torch/lib/libnvrtc.so", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
    assert laid_out("linux", tmp_path, cuda="13.0") == [
        ("torch/lib/libnvrtc.so", None, None),
        ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", None, 12),
    ]


def test_later_layouts_of_the_packages_are_found_and_newer_ones_first(tmp_path: Path) -> None:
    lay(tmp_path, "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu14/lib/libnvrtc.so.14")
    assert [major for *_, major in laid_out("linux", tmp_path)] == [14, 13]


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_where_nothing_is_installed_only_the_system_is_left(tmp_path: Path, platform: str) -> None:
    everything = candidates(platform, tmp_path / "nowhere")
    assert everything and all(c.builtins is None and not Path(c.library).is_absolute() for c in everything)
    assert isinstance(everything[0], Candidate)
