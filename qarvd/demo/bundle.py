"""What ships with the demo: model, prompt table, judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .judge import DigitReader
from .prompts import Prompt

FOLDER = Path(__file__).parent
MODEL = FOLDER / "demo.safetensors"
PROMPTS = FOLDER / "prompts.safetensors"
JUDGE = FOLDER / "judge.safetensors"
FRAMES_PER_SECOND = 8
LATENT_SIDE = 8
"""Height and width of the demo's latents."""
TEXT_LEN = 8
"""Tokens that the demo model attends to; a text of fewer is followed by zeros."""


@cache
def _table() -> Tensor:
    return load_file(PROMPTS)["words"]


def embed(prompts: Sequence[Prompt]) -> Tensor:
    """Text embeddings of `prompts`: [batch, 4 words, text_dim], float32."""
    return torch.stack([_table()[prompt.words] for prompt in prompts])


def load_judge() -> tuple[DigitReader, float]:
    """The digit reader, and its accuracy on digits that neither it nor the model was trained on."""
    reader = DigitReader()
    with safe_open(JUDGE, "pt") as file:
        reader.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        accuracy = json.loads(file.metadata()["judge"])["accuracy_on_unseen_digits"]
    return reader.eval(), accuracy
