"""Run the command line in tests: a command that must succeed, or be refused with one sentence and without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import qarvd.cli.calibrate as calibrate_verb
import qarvd.cli.quantize as quantize_verb
from qarvd.cli import main

Run = Callable[..., str]
CLIP = ("--size", "48x32", "--chunks", 2)
PROMPTS = 5
TEXT_DIM = 16
"""Of the tiny model."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must succeed, and give what it printed and said."""

    def command(*arguments: object) -> str:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out + captured.err

    return command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command that must be refused, leaving nothing behind, and give its one sentence."""

    def command(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert code == 2 and captured.out == ""
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
        said = captured.err.split("\r")[-1].strip()  # the progress bar wipes itself out
        assert said.startswith("qarvd: ") and said.endswith((".", ".)")) and "\n" not in said
        return said

    return command


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (calibrate_verb, quantize_verb):
        monkeypatch.setattr(module, "run_calibration", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(quantize_verb, "quantize", lambda *_: pytest.fail("the work began"))


def texts(path: Path, *shape: int, seed: int = 0) -> Path:
    """A file of random prompts."""
    save_file({"text_embeds": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}, path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return texts(tmp_path / "prompts.safetensors", PROMPTS, 3, TEXT_DIM)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """With an earlier result, which a refusal must not touch."""
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"precious")
    return path


@pytest.fixture
def text(embeddings: Tensor, tmp_path: Path) -> Path:
    """One prompt."""
    path = tmp_path / "text.safetensors"
    save_file({"text_embeds": embeddings[0].clone()}, path)
    return path


@pytest.fixture
def arguments(model_file: Path, text: Path, tmp_path: Path) -> list[object]:
    """A small stream of the tiny model."""
    return ["stream", model_file, "--prompt", text, "--size", "48x32", "--chunks", 2, "--out", tmp_path / "clip.mp4"]


def played(path: Path) -> int:
    """Frames of a video that decode."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def linked(link: Path, target: Path) -> Path:
    """Make `link` a symbolic link to `target`."""
    try:
        link.symlink_to(target)
    except OSError as error:  # of Windows, to those who are no administrators
        pytest.skip(f"no symbolic links here: {error}")
    return link
