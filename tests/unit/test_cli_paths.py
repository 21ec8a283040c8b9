"""Names of files as users give them: symbolic links, and endings in capitals."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny.commands import CLIP, Run, linked, played
from torch import Tensor

from qarvd.checkpoint.model import Model, load, state_tensors
from qarvd.cli import main

Written = Callable[..., Path]


@pytest.fixture
def written(run: Run, tmp_path: Path) -> Written:
    """Run a command with `option` naming a link to a file in another folder; gives that file."""

    def command(option: str, suffix: str, *arguments: object) -> Path:
        folder = tmp_path / f"disk{suffix}"
        folder.mkdir(exist_ok=True)
        target = folder / f"target{suffix}"
        target.write_bytes(b"old")
        link = linked(tmp_path / f"link{suffix}", target)
        run(*arguments, option, link)
        assert link.is_symlink() and not target.is_symlink() and target.read_bytes() != b"old"
        assert list(folder.iterdir()) == [target]
        link.unlink()
        return target

    return command


def test_every_verb_writes_through_a_link(
    written: Written, arguments: list[object], model_file: Path, prompts: Path
) -> None:
    calibrated = ("--prompts", prompts, *CLIP)
    quantized = written("--out", ".safetensors", "quantize", model_file)
    assert load(quantized).recipe is not None
    assert load(written("--out", ".safetensors", "quantize", model_file, *calibrated)).recipe is not None
    assert "errors" in load_file(written("--out", ".safetensors", "calibrate", model_file, *calibrated))
    assert played(written("--out", ".mp4", *arguments)) == 6
    assert "latents" in load_file(written("--latents", ".safetensors", *arguments))
    small = written("--out", ".safetensors", "quantize", model_file)
    assert "<html" in written("--out", ".html", "report", model_file, small).read_text()


def test_a_killed_run_behind_a_link_goes_on_by_either_name(
    run: Run, model_file: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "out.safetensors"
    link = linked(tmp_path / "link.safetensors", target)
    command = ["calibrate", model_file, "--prompts", prompts, *CLIP, "--out"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qarvd.jobs.calibrate.measure_calls", stop)
        assert main([str(part) for part in (*command, link)]) == 130
    assert (tmp_path / "disk" / "out.safetensors.work").is_dir() and not target.exists()
    assert "Resuming from" in run(*command, target, "--resume")
    assert target.is_file() and link.is_symlink()


def test_an_input_behind_a_link_is_never_written_to(refused: Run, model_file: Path, tmp_path: Path) -> None:
    link = linked(tmp_path / "link.safetensors", model_file)
    assert "is also an input" in refused("quantize", model_file, "--out", link)
    assert "is also an input" in refused("quantize", link, "--out", model_file)


def test_endings_in_capitals_are_read_and_written(
    run: Run, arguments: list[object], model: Model, model_file: Path, prompts: Path, tmp_path: Path
) -> None:
    loud = Path(shutil.copy(model_file, tmp_path / "TINY.SAFETENSORS"))
    texts = prompts.rename(tmp_path / "PROMPTS.Safetensors")
    pickled = tmp_path / "TINY.PT"
    torch.save({"generator": state_tensors(model)}, pickled)
    small, stats = tmp_path / "SMALL.SAFETENSORS", tmp_path / "STATS.SAFETENSORS"
    run("quantize", loud, "--out", small)
    run("calibrate", loud, "--prompts", texts, *CLIP, "--out", stats)
    assert "statistics" in run("inspect", stats)
    assert "qarvd_w8a8" in run("inspect", small)
    assert "causvid" in run("inspect", pickled, "--preset", "causvid")
    clip, latents = tmp_path / "CLIP.MP4", tmp_path / "CLIP.SAFETENSORS"
    run("stream", small, *arguments[2:], "--prompt", f"{texts}#1", "--out", clip, "--latents", latents)
    assert played(clip) == 6
    assert "all" in run("compare", clip, clip) and "all" in run("compare", latents, latents)
    page = tmp_path / "PAGE.HTML"
    run("report", loud, small, "--prompt", f"{texts}#1", *CLIP, "--out", page)
    assert "<html" in page.read_text()


def test_tied_tensors_of_a_checkpoint_are_quantized_and_written(run: Run, model: Model, tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = state_tensors(model)
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.0.ffn.0.weight"]
    tensors["blocks.1.norm3.bias"] = tensors["blocks.0.norm3.bias"]
    torch.save({"generator": tensors}, tmp_path / "tied.pt")
    out = tmp_path / "out.safetensors"
    run("quantize", tmp_path / "tied.pt", "--preset", "causvid", "--out", out)
    found = load_file(out)
    for name in ("ffn.0.weight", "norm3.bias"):
        assert torch.equal(found[f"blocks.0.{name}"], found[f"blocks.1.{name}"])
    assert torch.equal(found["blocks.0.norm3.bias"], tensors["blocks.0.norm3.bias"])
