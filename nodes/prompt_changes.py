"""The node with which a stream goes on with another prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..qarvd.errors import SettingError
from .models import CATEGORY
from .sockets import Changes


class ChangePrompt(io.ComfyNode):
    """A prompt and the chunk at which it takes over."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdChangePrompt",
            display_name="Change Prompt",
            category=CATEGORY,
            description=(
                "Continues a stream with another prompt, from a chunk on. The window is written again with the new "
                "prompt, as in LongLive, so that the scene follows. The sink stays. Chain nodes for more changes."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="The new prompt, from CLIP Text Encode."),
                io.Int.Input(
                    "chunk",
                    default=4,
                    min=2,
                    max=100_000,
                    tooltip="The first chunk with the new prompt. The first chunk of a stream is 1.",
                ),
                Changes.Input(
                    "earlier",
                    optional=True,
                    tooltip="The output of another Change Prompt. Their order does not matter.",
                ),
            ],
            outputs=[
                Changes.Output(display_name="changes", tooltip="Connect to Stream AR Video or Streaming AR Sampler.")
            ],
        )

    @classmethod
    def execute(
        cls, positive: Sequence[Any], chunk: int, earlier: Mapping[int, Sequence[Any]] | None = None
    ) -> io.NodeOutput:
        changes = dict(earlier or {})
        if chunk - 1 in changes:
            raise SettingError(f"Two prompts are set for chunk {chunk}. Give one of them another chunk.")
        return io.NodeOutput({**changes, chunk - 1: positive})
