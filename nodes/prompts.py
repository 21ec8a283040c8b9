"""The node that encodes a list of prompts for calibration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..qarvd.calibrate.prompts import shipped_prompts, stacked
from ..qarvd.checkpoint.model import checksum
from ..qarvd.checkpoint.write import save_file
from ..qarvd.demo.prompts import split_prompts
from ..qarvd.errors import PromptError, QarvdError
from ..qarvd.files import replacing
from . import demo
from .models import CATEGORY
from .progress import Progress
from .sockets import PromptList, Prompts
from .store import folder

SHIPPED, WRITTEN = "the 64 shipped prompts", "the text below"
LEAST = 4


class EncodePrompts(io.ComfyNode):
    """Text to embeddings, once, for any number of calibrations."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdEncodePrompts",
            display_name="Encode Prompt List",
            category=CATEGORY,
            description=(
                "Encodes prompts for Calibrate. It also writes them to output/qarvd/prompts, as a file for --prompts "
                "of python -m qarvd."
            ),
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="The text encoder of the model: UMT5 for Wan, or the CLIP output of Demo Model."
                ),
                io.Combo.Input(
                    "source",
                    options=[SHIPPED, WRITTEN],
                    default=SHIPPED,
                    tooltip=(
                        "The shipped prompts have many subjects, motions, cameras and lengths. For the demo model they "
                        "are 64 sentences of its own. Prompts like the ones you will use serve at least as well."
                    ),
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One prompt a line, or the name of a .txt file in ComfyUI's input folder. It is read only if "
                        f"source is {WRITTEN!r}. Give at least {LEAST} prompts; 24 or more are much better."
                    ),
                ),
                io.Int.Input(
                    "limit",
                    default=64,
                    min=LEAST,
                    max=1024,
                    tooltip=(
                        "The most prompts to use, from the first on. The first shipped prompts are as varied as the "
                        "rest."
                    ),
                ),
            ],
            outputs=[
                Prompts.Output(display_name="prompts", tooltip="Connect to Calibrate."),
                io.String.Output(display_name="file", tooltip="The .safetensors file with the encoded prompts."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, source: str, text: str, limit: int) -> io.NodeOutput:
        lines = listed(clip, source, text)[:limit]
        bar = Progress(len(lines))
        parts = []
        for number, line in enumerate(lines, 1):
            parts.append(encode(clip, line, number))
            bar.advance()
        embeddings = stacked(parts)
        path = folder("prompts") / f"{checksum({'text_embeds': embeddings})[:16]}.safetensors"
        if not path.is_file():
            with replacing(path) as temporary:
                save_file({"text_embeds": embeddings}, temporary, {"prompts": "\n".join(lines)})
        return io.NodeOutput(PromptList(embeddings, path), str(path))

    @classmethod
    def fingerprint_inputs(cls, source: str | None = None, text: str | None = None, **_: Any) -> str:
        """A text file that was written again holds other prompts; what comes through a link is not known here."""
        path = text_file(text) if source == WRITTEN and text else None
        return f"{path.stat().st_mtime_ns}" if path is not None and path.is_file() else ""


def listed(clip: Any, source: str, text: str) -> list[str]:
    """The prompts that are asked for. Raises PromptError for too few."""
    if source == SHIPPED:
        is_demo = isinstance(clip, demo.Language)
        return [str(prompt) for prompt in split_prompts()[0][:64]] if is_demo else shipped_prompts()
    content, path = text.strip(), text_file(text)
    if path is not None:
        if not path.is_file():
            raise PromptError(
                f"There is no text file {path}. Put it there and give its name, or write the prompts into the node."
            )
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise PromptError(f"{path} is not a text file in UTF-8. Save it as one.") from error
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if len(lines) < LEAST:
        raise PromptError(
            f"Calibration needs at least {LEAST} prompts, one a line, and this text has {len(lines)}. 24 or more of "
            "different kinds are much better."
        )
    return lines


def text_file(text: str) -> Path | None:
    """The file of ComfyUI's input folder that a text names, or None for a text that is prompts.

    Raises PromptError for a file elsewhere: a stranger's workflow shall not read what it likes, on this or, by a name
    such as \\\\server\\share, on another machine. So nothing is looked up before that is known.
    """
    name = text.strip()
    if "\n" in name or not name.lower().endswith(".txt"):
        return None
    folder = os.path.abspath(folder_paths.get_input_directory())
    path = Path(os.path.abspath(os.path.join(folder, name)))
    if not path.is_relative_to(folder):
        raise PromptError(f"Prompts are read only from ComfyUI's input folder. Put {path.name} into {folder}.")
    return path


def encode(clip: Any, line: str, number: int) -> Tensor:
    """Embeddings [tokens, text_dim] of one prompt, without the zeros at its end."""
    try:
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(line))
    except QarvdError as error:
        raise PromptError(f"Prompt {number}: {error}") from error
    tensor = conditioning[0][0]
    if tensor.ndim != 3 or len(tensor) != 1:
        raise PromptError(
            f"This text encoder gives a tensor of shape {tuple(tensor.shape)} for a prompt, but a video model needs "
            "[1, tokens, text_dim]. Load the model's own text encoder (Load CLIP, type wan)."
        )
    used = tensor[0].detach().abs().amax(-1).nonzero()
    return tensor[0, : int(used.max()) + 1 if len(used) else 1].detach().cpu()
