"""A disk that fills up ends a job with a sentence, leaves no file half-written and loses nothing that was finished."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from safetensors.torch import save_file
from tiny.model import CONFIG, tiny_model

import qarvd.calibrate.calibration as calibration_module
import qarvd.jobs.quantize as quantize_job
from qarvd.checkpoint.model import save
from qarvd.cli import main
from qarvd.quantize import walk

from .small_disk import fill

FULL = "No space left on device"


Write = Callable[[Path], None]


BUDGET = ("--target", "6 bits")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return some_prompts(tmp_path)


def some_prompts(folder: Path) -> Path:
    texts = torch.randn(6, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(3))
    save_file({"text_embeds": texts}, folder / "prompts.safetensors")
    return folder / "prompts.safetensors"


@pytest.fixture(scope="module", autouse=True)
def two_at_once() -> Iterator[None]:
    """Six prompts are three batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_module, "BATCH_TOKENS", 36)
        yield


@pytest.fixture(scope="module")
def unbroken(two_at_once: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each job writes when nothing is in its way."""
    folder = tmp_path_factory.mktemp("unbroken")
    save(tiny_model(), folder / "tiny.safetensors")
    found, prompts, out = {}, some_prompts(folder), folder / "out.safetensors"
    for name, verb, more in (
        ("statistics", "calibrate", ()),
        ("model", "quantize", ()),
        ("budget", "quantize", BUDGET),
    ):
        assert main(arguments(verb, folder / "tiny.safetensors", prompts, out, *more)) == 0
        found[name] = out.read_bytes()
    return found


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def arguments(verb: str, model: Path, prompts: Path, out: Path, *more: object) -> list[str]:
    clip = ("--size", "48x32", "--chunks", 2)
    fast = ("--rounding", "nearest") if verb == "quantize" else ()  # parts are kept alike, however they are rounded
    return [str(a) for a in (verb, model, "--prompts", prompts, *clip, *fast, "--out", out, *more)]


def refusal(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """The one sentence with which a command must end."""
    capsys.readouterr()
    assert main(command) == 2
    captured = capsys.readouterr()
    said = captured.err.split("\r")[-1].strip()
    assert captured.out == "" and said.startswith("qarvd: ") and said.endswith(".") and "\n" not in said
    return said


def full_when(after: int, write: Callable[..., None]) -> Callable[..., None]:
    """As `write`, but the disk is full after so many files; then it does what safetensors does."""
    written = 0

    def limited(*arguments: object) -> None:
        nonlocal written
        if written == after:
            raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")
        written += 1
        write(*arguments)

    return limited


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_statistics_are_resumed_after_a_full_disk(
    model_file: Path,
    prompts: Path,
    tmp_path: Path,
    unbroken: dict[str, bytes],
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save_file", full_when(after, safetensors.save_file))
        said = refusal(capsys, arguments("calibrate", model_file, prompts, out))
    assert f"out.safetensors.work/{f'batch-000{2 * after}' if after < 3 else 'result/out'}.safetensors could" in said
    assert FULL in said and out.read_bytes() == b"precious"
    assert len(list(tmp_path.glob("*.work/batch-*.safetensors"))) == after and not list(tmp_path.rglob("*.part*"))

    rolled = counted(monkeypatch)
    assert main(arguments("calibrate", model_file, prompts, out, "--resume")) == 0
    assert len(rolled) == 3 - after
    assert out.read_bytes() == unbroken["statistics"]
    assert not list(tmp_path.glob("*.work"))


def test_a_run_that_finished_nothing_is_in_no_ones_way(
    model_file: Path,
    prompts: Path,
    tmp_path: Path,
    unbroken: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save_file", full_when(0, safetensors.save_file))
        refusal(capsys, arguments("calibrate", model_file, prompts, out, "--seed", 7))
    assert [path.name for path in tmp_path.glob("*.work/*")] == ["about.json"]
    assert main(arguments("calibrate", model_file, prompts, out)) == 0  # another job, without --resume
    assert out.read_bytes() == unbroken["statistics"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches that are rolled out from now on."""
    rolled: list[int] = []
    roll_out = calibration_module.roll_out

    def counting(*arguments: object) -> object:
        rolled.append(1)
        return roll_out(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(calibration_module, "roll_out", counting)
    return rolled


@pytest.mark.parametrize(("after", "what"), [(3, "model"), (19, "model"), (9, "budget")])
def test_quantizing_is_resumed_after_a_full_disk(
    model_file: Path,
    prompts: Path,
    tmp_path: Path,
    unbroken: dict[str, bytes],
    after: int,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After three batches, and none, six or all of sixteen groups."""
    out, more = tmp_path / "out.safetensors", BUDGET if what == "budget" else ()
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save_file", full_when(after, safetensors.save_file))
        assert FULL in refusal(capsys, arguments("quantize", model_file, prompts, out, *more))
    assert not out.exists() and not list(tmp_path.rglob("*.part*"))

    rolled = counted(monkeypatch)
    monkeypatch.setattr(quantize_job, "choose_bits", chosen := Counting(quantize_job.choose_bits))
    monkeypatch.setattr(walk, "quantize_group", fitted := Counting(walk.quantize_group))
    assert main(arguments("quantize", model_file, prompts, out, *more, "--resume")) == 0
    assert not rolled and fitted.calls == 16 - (after - 3)
    assert not chosen.calls
    assert out.read_bytes() == unbroken[what]
    assert not list(tmp_path.glob("*.work"))


class Counting:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: object, **options: object) -> object:
        self.calls += 1
        return self.function(*arguments, **options)


def test_a_job_is_resumed_after_a_real_full_disk(
    model_file: Path,
    prompts: Path,
    small_disk: Path,
    unbroken: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = small_disk / "out.safetensors"
    for leave in (0, 8192, *[120_000] * 4):
        filling = fill(small_disk, leave)
        said = refusal(capsys, arguments("quantize", model_file, prompts, out, "--resume"))
        assert str(small_disk) in said and FULL in said
        assert not out.exists() and not list(small_disk.rglob("*.part*")) and not list(small_disk.rglob(".tmp*"))
        filling.unlink()
    assert any((small_disk / "out.safetensors.work").glob("blocks.1.*"))
    assert main(arguments("quantize", model_file, prompts, out, "--resume")) == 0
    assert out.read_bytes() == unbroken["model"] and tree(small_disk) == [out]


def test_states_on_a_full_disk_end_with_a_sentence_and_are_removed(
    model_file: Path,
    prompts: Path,
    tmp_path: Path,
    unbroken: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.safetensors"
    monkeypatch.setattr(quantize_job, "IN_MEMORY", 0)
    work = tmp_path / "out.safetensors.work"
    with monkeypatch.context() as patch:
        allocate = full_allocation(after=7)
        patch.setattr(os, "posix_fallocate", allocate, raising=False)
        said = refusal(capsys, arguments("quantize", model_file, prompts, out))
        assert "7.offload has no room for" in said and FULL in said
        assert (work / "batch-0000.safetensors").is_file() and not (work / "offload").exists()
    (work / "offload").mkdir()
    (work / "offload" / "0.offload").write_bytes(b"of a killed run")
    assert main(arguments("quantize", model_file, prompts, out, "--resume")) == 0
    assert out.read_bytes() == unbroken["model"] and not work.exists()


def full_allocation(after: int) -> Callable[[int, int, int], None]:
    """As posix_fallocate on a disk that has room for so many files."""
    count = 0

    def allocate(descriptor: int, start: int, size: int) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, FULL)
        os.truncate(descriptor, size)

    return allocate


def test_a_damaged_part_is_named_and_not_taken(
    model_file: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "out.safetensors", tmp_path / "out.safetensors.work"
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save_file", full_when(4, safetensors.save_file))
        refusal(capsys, arguments("quantize", model_file, prompts, out))
    resumed = arguments("quantize", model_file, prompts, out, "--resume")
    for name in ("batch-0000.safetensors", "text_embedding.0.safetensors", "about.json"):
        whole = (work / name).read_bytes()
        (work / name).write_bytes(whole[: len(whole) // 2])
        assert str(work / name) in refusal(capsys, resumed)
        (work / name).write_bytes(whole)
    assert main(resumed) == 0
