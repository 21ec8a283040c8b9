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
from tiny.commands import linked
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


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "real.bin"
    if there:
        target.write_text("old")
    between = linked(tmp_path / "between.bin", target)
    path = linked(tmp_path / "link.bin", between)
    with replacing(path) as part:
        part.write_text("new")
        assert part.parent == target.parent  # of one disk, so that it can be put in place in one step
    assert path.is_symlink() and between.is_symlink() and not target.is_symlink()
    assert target.read_text() == "new" and [found.name for found in target.parent.iterdir()] == ["real.bin"]


def test_links_that_lead_nowhere_are_refused_in_a_sentence(tmp_path: Path) -> None:
    circle = linked(tmp_path / "a.bin", tmp_path / "b.bin")
    linked(tmp_path / "b.bin", circle)
    (tmp_path / "folder").mkdir()
    for path, why in (
        (circle, "a symbolic link that leads back to itself"),
        (linked(tmp_path / "c.bin", tmp_path / "nowhere" / "c.bin"), "nowhere, which does not exist"),
        (linked(tmp_path / "d.bin", tmp_path / "folder"), "is a folder"),
    ):
        with pytest.raises(SettingError, match=why), replacing(path):
            pytest.fail("the block ran")
        assert path.is_symlink()


def test_tensors_that_share_memory_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "base": base,
        "the same": base,
        "a part": base[1:],
        "another way round": base.T,
        "one row thrice": base[0].expand(3, 4),
        "other numbers": base.view(torch.int32),
        "nothing": base[:0],
    }
    write_file(tensors, tmp_path / "a.safetensors", {"about": "ties"})
    found = safetensors.load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
