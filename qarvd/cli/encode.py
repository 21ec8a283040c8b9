"""`encode PROMPTS.txt --encoder FOLDER --out prompts.safetensors`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..calibrate.prompts import stacked
from ..checkpoint.write import save_file
from ..errors import CheckpointError, PromptError, SettingError
from ..files import no_file, replacing
from .common import DEVICE_HELP, check_out, counted, pick_device

HELP = "turn prompts into the embeddings that calibrate, quantize and stream take, with the checkpoint's text encoder"
PARTS = ("tokenizer", "text_encoder")
"""Folders of a release in diffusers' layout."""
LENGTH = 512
"""Tokens of a prompt, at most, as Wan has it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument(
        "--encoder",
        type=Path,
        required=True,
        help=f"a folder with the subfolders {PARTS[0]} and {PARTS[1]}, such as the diffusers release of Wan 2.1",
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def run(args: argparse.Namespace) -> None:
    check_out(args.out, ".safetensors", args.prompts)
    lines = read_lines(args.prompts)
    encode = text_encoder(args.encoder, pick_device(args.device))
    embeddings = stacked([encode(line) for line in tqdm(lines, unit="prompt", desc="encoding", leave=False)])
    with replacing(args.out) as temporary:
        save_file({"text_embeds": embeddings}, temporary, {"prompts": "\n".join(lines)})
    print(f"wrote {args.out}: {counted(len(lines), 'prompt')}, {embeddings.shape[2]} numbers a token")


def read_lines(path: Path) -> Sequence[str]:
    """The prompts of a text file, one a line, with single spaces. Raises PromptError for a file without any."""
    if not path.is_file():
        raise PromptError(no_file(path))
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not a text file in UTF-8; save it as one.") from error
    if not any(lines):
        raise PromptError(f"{path} holds no prompts; write one a line.")
    return [line for line in lines if line]


def text_encoder(folder: Path, device: torch.device) -> Callable[[str], Tensor]:
    """What turns a prompt into embeddings [tokens, text_dim], as Wan's own code does: without padding.

    Raises SettingError without the transformers package, and CheckpointError for a folder that holds no encoder.
    """
    try:
        import transformers  # slow to import, and only this verb needs it
    except ImportError as error:
        raise SettingError(
            'encode needs the transformers package: pip install "transformers>=4.56", or use ComfyUI\'s Python, which '
            "has it."
        ) from error
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}; download the text encoder first, and name its folder.")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise CheckpointError(
            f"{folder} has no subfolder {' and no '.join(missing)}; give the folder of a release in diffusers' layout, "
            "such as Wan2.1-T2V-1.3B-Diffusers."
        )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / PARTS[0], local_files_only=True)
        model: Any = transformers.UMT5EncoderModel.from_pretrained(
            folder / PARTS[1], dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"The text encoder in {folder} cannot be read ({why}); get its files again.") from error
    model.to(device).eval()

    @torch.no_grad()
    def encode(line: str) -> Tensor:
        tokens = tokenizer(line, truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"].to(device)
        return model(tokens).last_hidden_state[0].cpu()

    return encode
