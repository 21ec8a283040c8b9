"""Files of embeddings and latents that users bring: what is read from them, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.commands import Run, played, texts

from qarvd.checkpoint.inputs import read_embeddings, read_latents, read_one_prompt, read_prompt_list
from qarvd.errors import CheckpointError, PromptError, QarvdError

READERS = {
    "embeddings": (lambda path: read_embeddings(str(path)), (2, 3, 16)),
    "prompt list": (read_prompt_list, (2, 3, 16)),
    "latents": (read_latents, (1, 16, 2, 4, 4)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_8_bit_floats_are_read_as_the_numbers_they_stand_for(tmp_path: Path, reader: str, dtype: torch.dtype) -> None:
    read, shape = READERS[reader]
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"x": stored}, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    assert found.dtype == torch.float32 and torch.equal(found, stored.float())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_wider_floats_are_read_as_they_are(tmp_path: Path, reader: str, dtype: torch.dtype) -> None:
    read, shape = READERS[reader]
    stored = torch.randn(shape).to(dtype)
    save_file({"x": stored}, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    assert found.dtype == dtype and torch.equal(found, stored)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        *((dtype, f"of {dtype}; float16, bfloat16 or float32 was expected") for dtype in (torch.int8, torch.bool)),
        *((dtype, f"of {dtype}; float16") for dtype in (torch.int64, torch.complex64, torch.float8_e8m0fnu)),
    ],
)
def test_other_numbers_are_refused_by_name(tmp_path: Path, reader: str, dtype: torch.dtype, told: str) -> None:
    read, shape = READERS[reader]
    save_file({"x": torch.ones(shape).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("reader", READERS)
def test_nothing_and_no_numbers_are_refused(tmp_path: Path, reader: str) -> None:
    read, shape = READERS[reader]
    for tensor, told in (
        (torch.zeros(0, *shape[1:]), "which is empty"),
        (torch.full(shape, torch.nan), "NaN or infinite"),
        (torch.full(shape, torch.nan).to(torch.float8_e4m3fn), "NaN or infinite"),
    ):
        save_file({"x": tensor}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=told):
            read(tmp_path / "a.safetensors")


def test_one_prompt_of_a_file_is_chosen_by_its_number(tmp_path: Path) -> None:
    path = texts(tmp_path / "prompts.safetensors", 5, 3, 16)
    every = read_embeddings(str(path))
    assert every.shape == (5, 3, 16)
    for number in (1, 5):
        assert torch.equal(read_one_prompt(f"{path}#{number}"), every[number - 1 : number])
        assert torch.equal(read_embeddings(f"{path}#{number}"), every[number - 1 : number])
    for number in (0, 6):
        with pytest.raises(PromptError, match=f"asks for prompt {number} of .*prompts.safetensors, which holds 5"):
            read_embeddings(f"{path}#{number}")
    with pytest.raises(PromptError, match=r"holds 5 prompts, .* from '.*safetensors#1' to '.*safetensors#5'\."):
        read_one_prompt(str(path))


def test_a_number_belongs_to_the_name_of_a_file_that_is_called_so(tmp_path: Path) -> None:
    odd = tmp_path / "a#2"
    odd.mkdir()
    assert read_embeddings(str(texts(odd / "b#3.safetensors", 2, 3, 16))).shape == (2, 3, 16)
    assert read_embeddings(f"{odd / 'b#3.safetensors'}#2").shape == (1, 3, 16)
    with pytest.raises(QarvdError, match="no file"):
        read_embeddings(f"{tmp_path / 'nowhere.safetensors'}#2")


def test_a_stream_takes_one_of_several_prompts_and_asks_which(
    run: Run, refused: Run, arguments: list[object], prompts: Path, tmp_path: Path
) -> None:
    arguments[3] = prompts
    said = refused(*arguments)
    assert f"{prompts} holds 5 prompts, but a video has one at a time" in said and f"'{prompts}#5'" in said
    assert "holds 5 prompts" in refused(*arguments, "--prompt", f"{prompts}#1", "--then", 2, prompts)
    run(*arguments, "--prompt", f"{prompts}#1", "--then", 2, f"{prompts}#2")
    assert played(tmp_path / "clip.mp4") == 6
    assert "is also an input" in refused(*arguments, "--prompt", f"{prompts}#1", "--latents", prompts)


def test_8_bit_files_stream_as_their_wider_ones(run: Run, arguments: list[object], text: Path, tmp_path: Path) -> None:
    narrow = {
        "text": load_file(text)["text_embeds"].to(torch.float8_e4m3fn),
        "start": torch.randn(1, 16, 3, 4, 6).to(torch.float8_e5m2),
    }
    found = []
    for kind in ("narrow", "wide"):
        files = {name: tmp_path / f"{kind}-{name}.safetensors" for name in narrow}
        for name, tensor in narrow.items():
            save_file({"x": tensor if kind == "narrow" else tensor.float()}, files[name])
        latents = tmp_path / f"{kind}.safetensors"
        run(*arguments, "--prompt", files["text"], "--initial", files["start"], "--latents", latents)
        found.append(load_file(latents)["latents"])
    assert torch.equal(*found)
