"""A file written through `replacing` appears whole, or nothing changes."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors import torch as safetensors
from torch import Tensor

from qarvd.checkpoint.model import Model, save
from qarvd.checkpoint.write import save_file as write_file
from qarvd.errors import SettingError
from qarvd.files import replacing


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_the_new_content_is_in_place_after_the_block_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path and part.suffix == ".bin" and part.name.startswith(".")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_leaves_the_folder_as_it_was_and_goes_on(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "weights.bin"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_permissions_follow_the_umask_even_if_the_writer_swaps_the_file(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "weights.bin"
    with replacing(path) as part:
        part.unlink()
        part.touch(mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_place_that_cannot_be_written_is_refused_in_a_sentence_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path / "nowhere" / "a.bin", "nowhere, which does not exist"),
        (tmp_path / "file" / "a.bin", "cannot be written to"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(SettingError, match=why), replacing(path):
            pytest.fail("the block ran")


def test_the_longest_names_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".bin")
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_a_disk_that_is_full_at_the_flush_is_told_of(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"precious")

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SettingError, match=f"{path.name} could not be written: No space left on device"):
        save(model, path)
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_trouble_with_another_file_is_not_blamed_on_the_one_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"), replacing(tmp_path / "file.bin"):
        (tmp_path / "nowhere.bin").read_bytes()


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    metadata = {key: f'{key}: "ä\n\x7f\\' for key in "cabdefgh"}
    tensors: dict[str, Tensor] = {"b": torch.zeros(3), "a": torch.arange(4, dtype=torch.int8)}
    seen = set()
    for _ in range(4):
        write_file(tensors, tmp_path / "a.safetensors", metadata)
        seen.add((tmp_path / "a.safetensors").read_bytes())
        metadata = dict(reversed(metadata.items()))
    assert len(seen) == 1
    found = safetensors.load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata
