"""Kernels on the disk are used only where they are whole and of the source, the card and the compiler at hand."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import DeviceError, SettingError
from qarvd.files import kernel_folder
from qarvd.ops.cuda import cache, cubins
from qarvd.ops.cuda.cubins import SERVES, Cubin, unpack
from qarvd.ops.cuda.source import FOLDER, Source, read

laws = settings(deadline=None)
CUBIN = Cubin("sm_80", "5" * 64, "NVRTC 12.9", b"\x7fELF\n" + bytes(range(256)) * 20)
PACKED = CUBIN.pack()  # once: the strongest packing takes its time however little there is to pack


@settings(laws, max_examples=25)
@given(st.binary(max_size=300), st.sampled_from(list(SERVES)), st.text(max_size=20))
def test_unpacking_inverts_packing(image: bytes, architecture: str, compiler: str) -> None:
    cubin = Cubin(architecture, "abc", compiler, image)
    assert unpack(cubin.pack()) == cubin


@laws
@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    packed = bytearray(PACKED)
    packed[place] ^= change
    assert isinstance(unpack(bytes(packed)), str)


@laws
@given(st.integers(0, len(PACKED) - 1))
def test_a_truncated_file_is_noticed(size: int) -> None:
    assert isinstance(unpack(PACKED[:size]), str)


def test_a_python_without_lzma_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)
    assert "without lzma" in str(unpack(PACKED))


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 9), "sm_86"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((12, 0), "sm_120"),
        ((7, 0), None),
        ((8, 7), None),
        ((11, 0), None),
        ((13, 0), None),
    ],
)
def test_a_card_gets_the_kernels_it_can_run(capability: tuple[int, int], architecture: str | None) -> None:
    assert cubins.architecture_for(capability) == architecture


def test_prebuilt_kernels_of_another_source_card_or_in_pieces_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sm_80.xz"
    assert cubins.shipped((8, 0), CUBIN.source, tmp_path) == "there is no sm_80.xz among the prebuilt kernels"
    path.write_bytes(PACKED)
    assert cubins.shipped((8, 0), CUBIN.source, tmp_path) == CUBIN
    assert cubins.shipped((8, 0), "6" * 64, tmp_path) == "the prebuilt sm_80.xz was made from another source"
    path.write_bytes(replace(CUBIN, architecture="sm_90").pack())
    assert cubins.shipped((8, 0), CUBIN.source, tmp_path) == "the prebuilt sm_80.xz was made from another source"
    path.write_bytes(PACKED[:-9])
    assert "sm_80.xz can't be used: it is damaged" in str(cubins.shipped((8, 0), CUBIN.source, tmp_path))
    assert cubins.shipped((8, 7), CUBIN.source, tmp_path) == "no kernels are prebuilt for compute capability 8.7"


ORIGIN = (CUBIN.source, CUBIN.architecture, CUBIN.compiler)


def test_the_cache_gives_back_what_was_put_and_nothing_of_another_origin(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert cache.get(folder, *ORIGIN) is None
    cache.put(folder, CUBIN)
    cache.put(folder, CUBIN)
    assert cache.get(folder, *ORIGIN) == CUBIN
    assert len(list(folder.iterdir())) == 1
    for i, other in enumerate(("6" * 64, "sm_86", "NVRTC 13.0")):
        assert cache.get(folder, *(other if i == j else part for j, part in enumerate(ORIGIN))) is None


def test_a_damaged_or_exchanged_cache_entry_is_never_used(tmp_path: Path) -> None:
    cache.put(tmp_path, CUBIN)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for spoilt in (b"", whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        path.write_bytes(spoilt)
        assert cache.get(tmp_path, *ORIGIN) is None
    path.write_bytes(replace(CUBIN, source="6" * 64).pack())
    assert cache.get(tmp_path, *ORIGIN) is None
    cache.put(tmp_path, CUBIN)
    assert cache.get(tmp_path, *ORIGIN) == CUBIN


def test_a_cache_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="can't be made"):
        cache.put(tmp_path / "file" / "folder", CUBIN)


def test_the_cache_lies_where_each_system_keeps_caches() -> None:
    home = Path("/home/me")
    assert kernel_folder("linux", {}, home) == home / ".cache/qarvd/kernels"
    assert kernel_folder("linux", {"XDG_CACHE_HOME": "/tmp/c"}, home) == Path("/tmp/c/qarvd/kernels")
    assert kernel_folder("linux", {"XDG_CACHE_HOME": "c"}, home) == home / ".cache/qarvd/kernels"
    assert kernel_folder("win32", {"LOCALAPPDATA": "/local"}, home) == Path("/local/qarvd/kernels")
    assert kernel_folder("win32", {}, home) == home / "AppData/Local/qarvd/kernels"
    assert kernel_folder("darwin", {}, home) == home / "Library/Caches/qarvd/kernels"
    for platform in ("linux", "win32", "darwin"):
        assert kernel_folder(platform, {}, None) is None
    assert kernel_folder("linux", {"XDG_CACHE_HOME": "/tmp/c"}, None) == Path("/tmp/c/qarvd/kernels")
    assert kernel_folder("linux", {"XDG_CACHE_HOME": "c"}, None) is None


FILES = {"kernels.cu": "a", "one.cuh": "b"}


@pytest.mark.parametrize(
    "other",
    [
        {"kernels.cu": "a", "one.cuh": "c"},
        {"kernels.cu": "a", "two.cuh": "b"},
        {"kernels.cu": "a"},
        {"kernels.cu": "ab", "one.cuh": ""},
        {**FILES, "two.cuh": ""},
    ],
)
def test_the_hash_of_the_source_changes_with_every_name_and_text(other: dict[str, str]) -> None:
    assert Source(FILES).hash == Source(dict(reversed(FILES.items()))).hash
    assert Source(FILES).hash != Source(other).hash


def test_the_hash_of_the_source_changes_with_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Source(FILES).hash
    monkeypatch.setattr("qarvd.ops.cuda.source.OPTIONS", ("--use_fast_math",))
    assert Source(FILES).hash != before


def test_line_ends_do_not_count_and_other_files_are_not_source(tmp_path: Path) -> None:
    hashes = []
    for i, end in enumerate((b"\n", b"\r\n", b"\r")):
        folder = tmp_path / str(i)
        (folder / "cubins").mkdir(parents=True)
        (folder / "kernels.cu").write_bytes(end.join((b'#include "one.cuh"', b"int x;", b"")))
        (folder / "one.cuh").write_bytes(b"// \xc3\xa4" + end)
        (folder / f"note-{i}.md").write_text(str(i))
        source = read(folder)
        assert list(source.headers) == ["one.cuh"]
        hashes.append(source.hash)
    assert len(set(hashes)) == 1


def test_a_folder_without_the_main_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"holds no kernels\.cu"):
        read(tmp_path)


def test_the_source_includes_nothing_from_elsewhere() -> None:
    """NVRTC has no headers but those it is given; what only the emulator includes does not count."""
    source = read()
    names = {name for text in source.files.values() for name in re.findall(r'#include\s+[<"](.+)[>"]', text)}
    assert names <= {*source.files, "emulator.h"}


def test_only_the_cuda_backend_knows_the_folder_of_the_source() -> None:
    package = FOLDER.parent
    knowing = [path for path in package.rglob("*.py") if "csrc" in path.read_text(encoding="utf-8")]
    assert knowing and all(path.parent == package / "ops" / "cuda" for path in knowing)
