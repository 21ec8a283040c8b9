"""NVRTC is found in every layout that torch and NVIDIA's packages come in, on Linux and Windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from qarvd.ops.cuda.find import Candidate, candidates


def lay(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(
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
    assert found("linux", tmp_path, system=True) == [
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
    assert found("win32", tmp_path, system=True) == [
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
    majors = [major for *_, major in found(platform, tmp_path, cuda)]
    assert sorted(str(m) for m in majors) == ["12", "13"] and majors[0] == first


def test_built_ins_are_of_the_librarys_version_and_the_newest(tmp_path: Path) -> None:
    lay(tmp_path, "torch/lib/libnvrtc.so.12", "torch/lib/libnvrtc.so.13")
    lay(tmp_path, *(f"torch/lib/libnvrtc-builtins.so.{version}" for version in ("12.8", "12.10", "13.0")))
    assert found("linux", tmp_path) == [
        ("torch/lib/libnvrtc.so.13", "torch/lib/libnvrtc-builtins.so.13.0", 13),
        ("torch/lib/libnvrtc.so.12", "torch/lib/libnvrtc-builtins.so.12.10", 12),
    ]


def test_a_library_without_version_or_built_ins_is_tried_too(tmp_path: Path) -> None:
    lay(tmp_path, "torch/lib/libnvrtc.so", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
    assert found("linux", tmp_path, cuda="13.0") == [
        ("torch/lib/libnvrtc.so", None, None),
        ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", None, 12),
    ]


def test_later_layouts_of_the_packages_are_found_and_newer_ones_first(tmp_path: Path) -> None:
    lay(tmp_path, "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu14/lib/libnvrtc.so.14")
    assert [major for *_, major in found("linux", tmp_path)] == [14, 13]


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_where_nothing_is_installed_only_the_system_is_left(tmp_path: Path, platform: str) -> None:
    everything = candidates(platform, tmp_path / "nowhere")
    assert everything and all(c.builtins is None and not Path(c.library).is_absolute() for c in everything)
    assert isinstance(everything[0], Candidate)
