"""The node that says how far a quantized model's video is from the full one's."""

from __future__ import annotations

import math

from comfy_api.latest import io
from torch import Tensor

from ..qarvd.report.similarity import check_alike, frame_errors, psnr, ssim
from .models import CATEGORY
from .progress import Progress


class CompareVideos(io.ComfyNode):
    """PSNR and SSIM of each frame, and the error of each chunk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdCompare",
            display_name="Compare Videos",
            category=CATEGORY,
            description=(
                "Compares two videos frame by frame. If both come from the same seed and prompt, the difference is "
                "what quantizing changed. An error that grows from chunk to chunk is drift."
            ),
            is_output_node=True,
            inputs=[
                io.Image.Input("reference", tooltip="The frames of the full-precision video."),
                io.Image.Input(
                    "other", tooltip="The frames of the other video. It must have the same size and length."
                ),
                io.Int.Input(
                    "chunk_frames",
                    default=12,
                    min=1,
                    max=1024,
                    tooltip="Pixel frames in a chunk: 12 for Wan with chunks of 3 latent frames, 3 for the demo model.",
                ),
                io.Int.Input(
                    "first_chunk_frames",
                    default=9,
                    min=0,
                    max=1024,
                    tooltip=(
                        "Pixel frames in the first chunk: 9 for Wan, because its first latent frame is 1 pixel frame "
                        "instead of 4. 0: as in the others."
                    ),
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="PSNR", tooltip="PSNR of all frames together, in dB. 100 if they are the same."
                ),
                io.Float.Output(display_name="SSIM", tooltip="The mean SSIM of the frames."),
                io.String.Output(display_name="table", tooltip="PSNR and SSIM of each frame, as text."),
            ],
        )

    @classmethod
    def execute(cls, reference: Tensor, other: Tensor, chunk_frames: int, first_chunk_frames: int) -> io.NodeOutput:
        check_alike(reference, other)
        errors = frame_errors(reference, other)
        alike = ssim(reference, other, Progress(len(reference)).advance)
        ratios = [None if math.isinf(value) else value for value in psnr(errors).tolist()]
        first = first_chunk_frames or chunk_frames
        drift = [part.mean().item() for part in (errors[:first], *errors[first:].split(chunk_frames)) if len(part)]
        lines = ["frame  PSNR (dB)    SSIM"]
        for frame, (ratio, likeness) in enumerate(zip(ratios, alike.tolist(), strict=True)):
            lines.append(f"{frame:5}  {'same' if ratio is None else f'{ratio:.2f}':>9}  {likeness:.4f}")
        figures = {"psnr": ratios, "ssim": alike.tolist(), "drift": drift}
        figures |= {"chunk_frames": chunk_frames, "first_chunk_frames": first}
        whole = min(100.0, psnr(errors.mean()).item())
        return io.NodeOutput(whole, alike.mean().item(), "\n".join(lines), ui={"qarvd_compare": [figures]})
