"""What does not fit a real small disk is refused, and what was there stays."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny.model import CONFIG, tiny_model

from qarvd.calibrate.offload import OffloadAllocator
from qarvd.checkpoint.calibration import save_calibration
from qarvd.checkpoint.model import save
from qarvd.errors import SettingError
from qarvd.files import replacing
from qarvd.jobs import quantize as quantize_job
from qarvd.jobs.calibrate import CalibrationPlan, calibrate
from qarvd.jobs.work import Work
from qarvd.recipe import RECIPES

from .small_disk import fill

FULL = "No space left on device"


Write = Callable[[Path], None]


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


PLAN = CalibrationPlan((4, 6), 3, RECIPES["w4a8"].without_data())
WRITERS: dict[str, Write] = {
    "a model": lambda path: save(tiny_model(), path),
    "statistics": lambda path: save_calibration(
        calibrate(tiny_model(), torch.zeros(4, 3, CONFIG.text_dim), PLAN), path
    ),
    "a text": lambda path: replaced(path, "x" * 10**6),
}


def replaced(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_that_does_not_fit_a_real_disk_is_named_and_the_old_one_stays(small_disk: Path, what: str) -> None:
    path = small_disk / "file.safetensors"
    path.write_bytes(b"precious")
    fill(small_disk, leave=8192)
    before = tree(small_disk)
    with pytest.raises(SettingError, match=rf"file\.safetensors could not be written: .*{FULL}"):
        WRITERS[what](path)
    assert tree(small_disk) == before and path.read_bytes() == b"precious"


def test_states_that_do_not_fit_a_real_disk_are_refused_and_take_no_room(small_disk: Path) -> None:
    offload = OffloadAllocator(small_disk)
    first = offload.empty((100_000,), torch.float32)
    free = os.statvfs(small_disk).f_bavail
    with pytest.raises(SettingError, match=rf"1\.offload has no room for 0\.00 GB \({FULL}\)"):
        offload.empty((1_000_000,), torch.float32)
    assert os.statvfs(small_disk).f_bavail == free and [path.name for path in small_disk.iterdir()] == ["0.offload"]
    first.fill_(1)


@pytest.mark.parametrize(
    ("states", "free", "work", "where"),
    [
        (9e9, 17e9, True, "card"),
        (9e9, 16.9e9, True, "disk"),
        (9e9, 16.9e9, False, "memory"),
        (9e8, 0.0, True, "memory"),
    ],
)
def test_states_stay_on_a_card_that_has_room_and_leave_it_some(
    states: float, free: float, work: bool, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_job, "free_memory", lambda device: free)
    job = Work(tmp_path / "work", {}, resume=False) if work else None
    with quantize_job.offload_for(states, torch.device("meta"), job) as offload:  # which stands in for a card
        tensor = offload.empty((3, 2), torch.float32)
        assert tensor.device.type == ("meta" if where == "card" else "cpu")
        assert (tmp_path / "work" / "offload" / "0.offload").is_file() == (where == "disk")
    assert not (tmp_path / "work" / "offload").exists()


def test_only_a_card_has_memory_of_its_own() -> None:
    assert quantize_job.free_memory(torch.device("cpu")) == 0
