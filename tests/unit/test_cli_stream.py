"""Streaming from the command line: videos play, and what goes wrong leaves earlier ones as they were."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.commands import Run, played
from torch import Tensor

from qarvd.cli import main
from qarvd.cli import stream as stream_verb
from qarvd.errors import QarvdError
from qarvd.stream.sampler import Chunk

BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "cfg": (["--cfg", "5"], "use cfg 1"),
    "no chunks": (["--chunks", "0"], "--chunks must be at least 1"),
    "negative chunks": (["--chunks", "-2"], "--chunks must be at least 1"),
    "chunks without end": (["--chunks", "99999999999"], "100,000 is the most"),
    "size in words": (["--size", "large"], "not WIDTHxHEIGHT in pixels"),
    "size of three": (["--size", "4x4x4"], "not WIDTHxHEIGHT in pixels"),
    "size 0": (["--size", "0x32"], "the nearest is 16 x 32"),
    "size that does not divide": (["--size", "830x480"], "both must be multiples of 16, 8192 at most"),
    "size in latents": (["--size", "60x104"], "60 x 104 pixels (width x height) can't be made"),
    "size without end": (["--size", "832x99999"], "the nearest is 832 x 8192"),
    "endless digits": (["--size", "9" * 5000 + "x480"], "not WIDTHxHEIGHT in pixels"),
    "text": (["--prompt", "a cat on a sofa"], "`python -m qarvd encode` makes"),
    "no such embeddings": (["--prompt", "nowhere.safetensors"], "There is no file"),
    "window": (["--window", "2"], "room"),
    "sink": (["--window", "6", "--sink", "6"], "room"),
    "seed": (["--seed", str(2**64)], "64 bits"),
    "device": (["--device", "abacus"], "abacus"),
    "suffix": (["--out", "clip.avi"], "must end in .mp4"),
    "suffix of latents": (["--latents", "clip.pt"], "must end in .safetensors"),
    "folder": (["--out", "/dev/null/clip.mp4"], "choose another folder"),
    "folder of latents": (["--latents", "/dev/null/clip.safetensors"], "choose another folder"),
    "no such folder": (["--out", "/nowhere/at/all/clip.mp4"], "choose another folder"),
    "another prompt at the start": (["--then", "1", "prompt"], "the first change can be at chunk 2"),
    "another prompt after the end": (["--then", "3", "prompt"], "the video ends with chunk 2"),
    "another prompt at no chunk": (["--then", "late", "prompt"], "'late' is not a number"),
    "two prompts at once": (["--then", "2", "prompt", "--then", "2", "prompt"], "two prompts"),
    "no such other prompt": (["--then", "2", "nowhere.safetensors"], "There is no file"),
    "no such initial latents": (["--initial", "nowhere.safetensors"], "There is no file"),
}


@pytest.mark.parametrize("bad", BAD_OPTIONS)
def test_stream_refuses_a_bad_option_and_keeps_an_existing_video(
    refused: Run, arguments: list[object], tmp_path: Path, bad: str
) -> None:
    options, expected = BAD_OPTIONS[bad]
    options = [str(arguments[3]) if option == "prompt" else option for option in options]
    (tmp_path / "clip.mp4").write_bytes(b"precious")
    before = sorted(tmp_path.iterdir())
    assert expected in refused(*arguments, *options)
    assert (tmp_path / "clip.mp4").read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == before


def test_no_frames_and_an_endless_stream_without_a_window_are_refused(
    refused: Run, model_file: Path, text: Path, tmp_path: Path
) -> None:
    start = ["stream", model_file, "--prompt", text, "--out", tmp_path / "a.mp4"]
    assert "--frames must be at least 1" in refused(*start, "--frames", "0")
    assert "needs a window" in refused(*start, "--endless")


@pytest.mark.parametrize("shape", [(), (16,), (3, 32), (9, 16), (2, 3, 16)])
def test_embeddings_of_another_shape_are_refused(
    refused: Run, arguments: list[object], text: Path, shape: tuple[int, ...]
) -> None:
    save_file({"text_embeds": torch.zeros(shape)}, text)
    assert re.search(r"embeddings|2 prompts", refused(*arguments))


def test_a_prompt_outside_the_demos_vocabulary_is_refused(refused: Run, tmp_path: Path) -> None:
    said = refused("stream", "demo", "--prompt", "a cat", "--out", tmp_path / "a.mp4")
    assert "a cat" in said and "down left" in said


def test_frames_need_not_fill_the_last_chunk_and_a_clip_can_go_on(
    run: Run, model_file: Path, text: Path, tmp_path: Path
) -> None:
    start = ["stream", model_file, "--prompt", text, "--size", "32x32", "--out", tmp_path / "a.mp4"]
    latents = tmp_path / "a.safetensors"
    run(*start, "--frames", 5, "--latents", latents)
    assert played(tmp_path / "a.mp4") == 5
    for cache in ("int8", "int4"):
        run(*start, "--frames", 4, "--initial", latents, "--window", 6, "--sink", 1, "--cache", cache)
        assert played(tmp_path / "a.mp4") == 4


@pytest.mark.parametrize(("size", "latents"), [("48x32", (4, 6)), ("32X48", (6, 4)), (" 16x16 ", (2, 2))])
def test_a_size_is_width_and_height_in_pixels(
    run: Run, arguments: list[object], tmp_path: Path, size: str, latents: tuple[int, int]
) -> None:
    path = tmp_path / "clip.safetensors"
    run(*arguments, "--chunks", 1, "--size", size, "--latents", path)
    assert load_file(path)["latents"].shape[3:] == latents


def test_a_video_that_goes_on_has_the_size_of_its_beginning(
    run: Run, refused: Run, model_file: Path, text: Path, tmp_path: Path
) -> None:
    first, more = tmp_path / "first.safetensors", tmp_path / "more.safetensors"
    start = ("stream", model_file, "--prompt", text, "--chunks", 1, "--out", tmp_path / "clip.mp4", "--latents")
    run(*start, first, "--size", "32x48")
    run(*start, more, "--initial", first)
    assert load_file(more)["latents"].shape == (1, 16, 3, 6, 4)
    assert "initial latents have shape (1, 16, 3, 6, 4)" in refused(*start, more, "--initial", first, "--size", "48x32")
    demo = ("stream", "demo", "--prompt", "a 7 moving left", "--out", tmp_path / "demo.mp4", "--initial", first)
    assert "draws 32 x 32 pixels" in refused(*demo)


def test_a_stream_goes_on_with_another_prompt(
    run: Run, arguments: list[object], embeddings: Tensor, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"text_embeds": embeddings[0] + 1}, other)
    found = {}
    for name, then in (("one", ()), ("two", ("--then", 2, other))):
        run(*arguments, *then, "--latents", tmp_path / f"{name}.safetensors")
        found[name] = load_file(tmp_path / f"{name}.safetensors")["latents"].split(3, dim=2)
    assert torch.equal(found["one"][0], found["two"][0])
    assert not torch.equal(found["one"][1], found["two"][1])


def interrupting(after: int, error: type[BaseException]) -> Callable[..., Iterator[Chunk]]:
    """A roll-out that is stopped while chunk `after` is denoised."""
    roll_out = stream_verb.roll_out

    def stopped(*arguments: object, **options: object) -> Iterator[Chunk]:
        for chunk in roll_out(*arguments, **options):  # pyright: ignore
            if chunk.index == after:
                raise error("Stopped by the test.")
            yield chunk

    return stopped


def test_ctrl_c_keeps_a_playable_video_and_the_latents(
    arguments: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stream_verb, "roll_out", interrupting(2, KeyboardInterrupt))
    latents = tmp_path / "clip.safetensors"
    code = main([str(a) for a in (*arguments, "--chunks", 5, "--latents", latents)])
    assert code == 130 and "Traceback" not in capsys.readouterr().err
    assert played(tmp_path / "clip.mp4") == 6
    assert load_file(latents)["latents"].shape[2] == 6


def test_a_failure_midway_leaves_an_existing_video_as_it_was(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stream_verb, "roll_out", interrupting(1, QarvdError))
    (tmp_path / "clip.mp4").write_bytes(b"precious")
    before = sorted(tmp_path.iterdir())
    assert main([str(a) for a in arguments]) == 2
    assert capsys.readouterr().err.endswith("qarvd: Stopped by the test.\n")
    assert (tmp_path / "clip.mp4").read_bytes() == b"precious" and sorted(tmp_path.iterdir()) == before


def test_the_bundled_demo_streams_a_prompt(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "seven.mp4"
    run("stream", "demo", "--prompt", "a 7 moving left fast", "--chunks", 1, "--out", out)
    assert played(out) == 3
